"""Encoders, decoders and the ``Segmentor`` that joins them to a head; HRDA, which does so at two resolutions."""

from protoseg.models.hrda import HRDASegmentor
from protoseg.models.segmentor import Segmentor
