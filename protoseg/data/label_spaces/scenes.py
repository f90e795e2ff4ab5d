"""All kinds of scenes: ADE20K and COCO-Stuff, whose lists of classes are the .tsv files beside this file."""

from __future__ import annotations

from protoseg.data.label_spaces.tables import read_classes
from protoseg.types import IGNORE_INDEX

# ADE20K's scene parsing benchmark: numbers and (first) names of objectInfo150.txt and the colours of color150.mat in
# https://github.com/CSAILVision/sceneparsing (road and skyscraper share one); the 100 things of its instance benchmark.
ADE20K_150, ADE20K_IDS = read_classes("ade20k")
ADE20K_IDS[0] = IGNORE_INDEX  # other objects

# COCO-Stuff: labels.txt of https://github.com/nightrome/cocostuff without the 11 classes that were never annotated. The
# pixelmaps hold the number there less 1, and 255 for unlabelled. No colours are published; these are PASCAL VOC's.
COCO_STUFF, COCO_STUFF_IDS = read_classes("coco_stuff")
