"""``python -m protoseg.benchmark``: the earlier door to ``python -m benchmarks``, which stands beside the package."""

from runpy import run_module

if __name__ == "__main__":
    run_module("benchmarks", run_name="__main__", alter_sys=True)
