"""One self-contained HTML page about a checkpoint: how good it is, where it errs, what its prototypes stand for.

=============  ==========================================================================
``page``       the page from its parts; the template lies in ``template/``
``worst``      the images with the lowest mIoU, kept while an evaluation runs
``pixels``     images to click into: which prototype takes each cell, and which is second
``prototypes`` patches, activation maps and numbers of each prototype
=============  ==========================================================================
"""
