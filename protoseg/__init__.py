"""Semantic segmentation with class prototypes: supervised (ProtoSeg) and domain-adaptive (PGPC)."""

__version__ = "0.1.0"
