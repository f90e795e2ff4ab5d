"""New classes without training: a class is K vectors, so adding, removing or merging one edits vectors, not weights."""

from protoseg.teach.edit import ClassEdit, apply_edit, read_edit, write_edit
from protoseg.teach.normalisation import adapt_normalisation
from protoseg.teach.operations import add_classes, merge_classes, refresh_class, remove_classes
from protoseg.teach.statistics import with_statistics
from protoseg.teach.tuning import tune_classes
