"""Encoders, decoders and the ``Segmentor`` that joins them to a head."""
