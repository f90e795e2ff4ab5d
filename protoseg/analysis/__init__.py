"""Looking into a trained model: what its prototypes stand for, where it errs, what adaptation changed.

Numbers come first, as tensors and plain values; functions whose names end in ``_figure``, ``_panel``, ``_sheet`` or
``_picture`` draw them. Everything streams: memory does not grow with the number of images.

==================  ====================================================================================
``stream``          ``scenes``, ``look``, ``collect``: images with what a model makes of them
``activations``     ``activation``: where each prototype of a class fires
``patches``         ``PatchCollector``: the places nearest to each prototype
``structure``       ``occupancy``, ``describe``: dead and double prototypes
``uncertainty``     ``pixel_uncertainty``, ``error_detection``: margin, distance and softmax confidence
``embedding``       ``EmbeddingCollector``, ``embedding_map``: pixels and prototypes on a plane
``adaptation``      ``compared``, ``ConfusionCollector``: several networks on the same images
``sweep``           the runs of a sweep side by side
==================  ====================================================================================

Nothing is imported here, so that ``protoseg analyse --help`` answers at once.
"""
