"""Looking into a trained model: what its prototypes stand for, where it errs, what adaptation changed.

Numbers come first, as tensors and plain values; functions whose names end in ``_figure``, ``_panel``, ``_sheet`` or
``_picture`` draw them. Everything streams (``stream``: ``scenes``, ``look``, ``collect``): memory does not grow with
the number of images. Nothing is imported here, so that the command line answers at once.
"""
