"""Timings as ratios of paired runs in one process: ``python -m benchmarks head``."""
