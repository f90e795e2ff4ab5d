"""All kinds of scenes: ADE20K and COCO-Stuff, whose lists of classes are the .tsv files beside this file."""

from __future__ import annotations

from protoseg.data.label_spaces.tables import FILE_IGNORED, id_table, read_classes, wide_id_table

# ADE20K's scene parsing benchmark: numbers and (first) names of objectInfo150.txt and the colours of color150.mat in
# https://github.com/CSAILVision/sceneparsing (road and skyscraper share one); the 100 things of its instance benchmark.
ADE20K_150, _numbers = read_classes("ade20k")
ADE20K_IDS = id_table({0: FILE_IGNORED, **_numbers})  # 0: other objects

# ADE20K's full annotations: the 847 classes of MaskFormer (arXiv 2107.06278), the most frequent first, as listed in
# https://github.com/facebookresearch/MaskFormer, datasets/prepare_ade20k_full_sem_seg.py. Its ids are the numbers in
# the masks, which count from 1: number 165 is a bed, and that is objectnames[164] of the release's index_ade20k.pkl
# (https://github.com/CSAILVision/ADE20K/issues/15). No colours are published; these are PASCAL VOC's, from 1 on.
ADE20K_FULL, _numbers = read_classes("ade20k_full")
ADE20K_OBJECTS = 3688  # numbers there are; those of other objects, and 0, unlabelled, are ignored
ADE20K_FULL_IDS = wide_id_table(_numbers, length=ADE20K_OBJECTS + 1)

# COCO-Stuff: labels.txt of https://github.com/nightrome/cocostuff without the 11 classes that were never annotated. The
# pixelmaps hold the number there less 1, and 255 for unlabelled. No colours are published; these are PASCAL VOC's.
COCO_STUFF, _numbers = read_classes("coco_stuff")
COCO_STUFF_IDS = id_table(_numbers)
