"""Annotation files of polygons, run lengths and bitmaps: into label maps, and out of them."""
