"""Labelled street scenes without end, drawn by Panda3D without a screen and without any third-party picture or model.

``street`` composes a scene of ``buildings``, ``vehicles``, ``people``, ``plants`` and ``furniture`` (all of ``mesh``),
``weather`` lights it, ``engine`` draws it and its labels, ``camera`` photographs it, ``writing`` writes many.
"""

from __future__ import annotations

from protoseg.render.writing import RenderSettings, render_dataset, render_sample

__all__ = ["RenderSettings", "render_dataset", "render_sample"]
