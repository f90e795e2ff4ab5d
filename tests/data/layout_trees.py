"""Tiny trees in the layouts of public data sets, and what their masks mean by tables that are not the package's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

Values = Mapping[Any, "str | None"]
_NAMES = (
    "road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky person rider car truck "
    "bus train motorcycle bicycle"
)
CITYSCAPES = [name.replace("_", " ") for name in _NAMES.split()]
TRAIN_IDS: Values = {**dict(enumerate(CITYSCAPES)), 255: None}
# cityscapesScripts, helpers/labels.py
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LABEL_IDS: Values = {**dict.fromkeys(range(34)), **dict(zip(_LABEL_IDS, CITYSCAPES, strict=True))}
# tue-mps/benchmark-vfm-ss, datasets/mappings.py
_OF_VISTAS = {
    13: 0, 24: 0, 41: 0, 2: 1, 15: 1, 17: 2, 6: 3, 3: 4, 45: 5, 47: 5, 48: 6, 50: 7, 30: 8, 29: 9, 27: 10, 19: 11,
    20: 12, 21: 12, 22: 12, 55: 13, 61: 14, 54: 15, 58: 16, 57: 17, 52: 18,
}  # fmt: skip
VISTAS_TO_CITYSCAPES: Values = {**dict.fromkeys(range(66)), **{i: CITYSCAPES[t] for i, t in _OF_VISTAS.items()}}
# config_v1.2.json and config_v2.0.json
VISTAS: Values = {0: "Bird", 13: "Road", 24: "Lane Marking - General", 55: "Car", 64: "Ego Vehicle", 65: None}
VISTAS_V2: Values = {
    0: "Bird", 2: None, 3: "Concrete Block", 21: "Road", 30: "Person", 31: None, 108: "Car", 115: None, 122: "Static",
    123: None,
}  # fmt: skip
# AutoNUE/public-code, helpers/anue_labels.py
IDD: Values = {0: "road", 1: "drivable fallback", 8: "autorickshaw", 12: "vehicle fallback", 25: "sky", 255: None}
IDD_LEVEL_1: Values = {0: "drivable", 3: "vehicles", 6: "sky", 255: None}
LOVEDA: Values = {
    0: None, 1: "background", 2: "building", 3: "road", 4: "water", 5: "barren", 6: "forest", 7: "agricultural",
}  # fmt: skip
ISPRS: Values = {
    (255, 255, 255): "impervious surface", (0, 0, 255): "building", (0, 255, 255): "low vegetation",
    (0, 255, 0): "tree", (255, 255, 0): "car", (255, 0, 0): "clutter",
}  # fmt: skip
VOC: Values = {0: "background", 1: "aeroplane", 6: "bus", 15: "person", 20: "tvmonitor", 255: None}
SBD: Values = {0: "background", 1: "aeroplane", 15: "person", 20: "tvmonitor"}
CONTEXT: Values = {0: None, 1: "aeroplane", 6: "bicycle", 37: "person", 59: "wood"}
CONTEXT_MAT: Values = {0: None, 1: None, 2: "aeroplane", 23: "bicycle", 284: "person", 427: "tvmonitor", 459: None}


class Tree(NamedTuple):
    """A fabricated data set.

    Attributes:
        files: lines of split, image, and mask where there is one; the split ``-``: not read.
        values: what each value (id or colour) of the masks means; None: ignored.
        config: the name of its file in ``conf/data``; that of the tree unless given.
        settings: overrides, of ``data.dataset``.
        texts: lists, by their paths.
    """

    files: str
    values: Values
    config: str = ""
    settings: tuple[str, ...] = ()
    texts: Mapping[str, str] = {}


def _drives(end: str) -> str:
    """Cityscapes' layout, with an image of each suffix that IDD has."""
    return f"""
        train leftImg8bit/train/0/a_leftImg8bit.png gtFine/train/0/a_gtFine_{end}.png
        train leftImg8bit/train/201/frame1_leftImg8bit.jpg gtFine/train/201/frame1_gtFine_{end}.png
        val leftImg8bit/val/1/b_leftImg8bit.png gtFine/val/1/b_gtFine_{end}.png
        test leftImg8bit/test/2/c_leftImg8bit.jpg
        - gtFine/train/0/a_gtFine_instanceIds.png
        - gtFine/train/0/a_gtFine_labelids.png
    """


def _vistas(folder: str) -> str:
    return f"""
        train training/images/x-y_Z0.jpg training/{folder}/x-y_Z0.png
        val validation/images/q.jpg validation/{folder}/q.png
        test testing/images/r.jpg
        - training/v1.2/instances/x-y_Z0.png
    """


_VOC_LISTS = {
    "ImageSets/Segmentation/train.txt": "2007_000032\n",
    "ImageSets/Segmentation/val.txt": "2007_000033\n",
    "ImageSets/Segmentation/trainaug.txt": "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n"
    "2008_000008\n",
}
_CONTEXT_LISTS = {f"ImageSets/SegmentationContext/{split}.txt": f"2008_{split}\n" for split in ("train", "val")}
_CONTEXT = """
    train JPEGImages/2008_train.jpg SegmentationClassContext/2008_train.png
    val JPEGImages/2008_val.jpg SegmentationClassContext/2008_val.png
    - JPEGImages/2009_other.jpg
"""

TREES = {
    "bdd100k": Tree(
        """
        train images/10k/train/0a.jpg labels/sem_seg/masks/train/0a.png
        val images/10k/val/0b.jpg labels/sem_seg/masks/val/0b.png
        test images/10k/test/0c.jpg
        - labels/sem_seg/colormaps/train/0a.png
        """,
        TRAIN_IDS,
    ),
    "bdd100k of 2018": Tree(
        """
        train seg/images/train/0a.jpg seg/labels/train/0a_train_id.png
        - seg/color_labels/train/0a_train_color.png
        """,
        TRAIN_IDS,
        "bdd100k",
    ),
    "foggy_cityscapes": Tree(
        """
        train leftImg8bit_foggyDBF/train/k/u_0_leftImg8bit_foggy_beta_0.02.png gtFine/train/k/u_0_gtFine_labelIds.png
        train leftImg8bit_foggyDBF/train/k/u_1_leftImg8bit_foggy_beta_0.02.png gtFine/train/k/u_1_gtFine_labelIds.png
        val leftImg8bit_foggyDBF/val/bonn/b_0_leftImg8bit_foggy_beta_0.02.png gtFine/val/bonn/b_0_gtFine_labelIds.png
        - leftImg8bit_foggyDBF/train/k/u_0_leftImg8bit_foggy_beta_0.01.png
        - leftImg8bit_foggyDBF/train/k/u_1_leftImg8bit_foggy_beta_0.01.png
        - gtFine/train/k/u_0_gtFine_color.png
        """,
        LABEL_IDS,
        texts={"foggy_trainval_refined_filenames.txt": "train/k/u_1\nval/bonn/b_0\n"},
    ),
    "idd": Tree(_drives("labellevel3Ids"), IDD),
    "idd of level 1": Tree(
        _drives("labellevel1Ids"),
        IDD_LEVEL_1,
        "idd",
        ("classes=idd_level1", "masks='gtFine/{split}/**/*_gtFine_labellevel1Ids.png'"),
    ),
    "idd_cityscapes": Tree(_drives("labelcsTrainIds"), TRAIN_IDS),
    "kitti": Tree(
        """
        train training/image_2/000000_10.png training/semantic/000000_10.png
        test testing/image_2/000000_10.png
        - training/semantic_rgb/000000_10.png
        """,
        LABEL_IDS,
    ),
    "loveda": Tree(
        """
        train Train/Rural/images_png/0.png Train/Rural/masks_png/0.png
        train Train/Urban/images_png/1366.png Train/Urban/masks_png/1366.png
        val Val/Rural/images_png/2522.png Val/Rural/masks_png/2522.png
        val Val/Urban/images_png/3514.png Val/Urban/masks_png/3514.png
        test Test/Rural/images_png/4191.png
        test Test/Urban/images_png/5167.png
        """,
        LOVEDA,
    ),
    "pascal_context": Tree(_CONTEXT, CONTEXT, texts=_CONTEXT_LISTS),
    "pascal_context_60": Tree(_CONTEXT, {**CONTEXT, 0: "background"}, texts=_CONTEXT_LISTS),
    "pascal_context of MATLAB": Tree(
        _CONTEXT.replace("SegmentationClassContext", "trainval").replace(".png", ".mat"),
        CONTEXT_MAT,
        "pascal_context",
        ("masks=trainval/*.mat", "ids=mat"),
        _CONTEXT_LISTS,
    ),
    "potsdam": Tree(
        """
        train 2_Ortho_RGB/top_potsdam_2_10_RGB.tif 5_Labels_all/top_potsdam_2_10_label.tif
        val 2_Ortho_RGB/top_potsdam_2_13_RGB.tif 5_Labels_all/top_potsdam_2_13_label.tif
        """,
        ISPRS,
        settings=("splits={train:['2_10'],val:['2_13']}",),
    ),
    "potsdam without boundaries": Tree(
        """
        val 2_Ortho_RGB/top_potsdam_2_13_RGB.tif 5_Labels_all_noBoundary/top_potsdam_2_13_label_noBoundary.tif
        - 5_Labels_all/top_potsdam_2_13_label.tif
        """,
        {**ISPRS, (0, 0, 0): None},
        "potsdam",
        ("masks='5_Labels_all_noBoundary/top_potsdam_*_label_noBoundary.tif'", "splits={val:['2_13']}"),
    ),
    "sbd": Tree(
        """
        train img/2008_000008.jpg cls/2008_000008.mat
        val img/2008_000015.jpg cls/2008_000015.mat
        """,
        SBD,
        texts={"train.txt": "2008_000008\n", "val.txt": "2008_000015\n"},
    ),
    "vaihingen": Tree(
        """
        train top/top_mosaic_09cm_area1.tif top_mosaic_09cm_area1.tif
        val top/top_mosaic_09cm_area2.tif top_mosaic_09cm_area2.tif
        - top/top_mosaic_09cm_area9.tif
        """,
        ISPRS,
        settings=("splits={train:['1'],val:['2']}",),
    ),
    "vistas": Tree(_vistas("v1.2/labels"), VISTAS),
    "vistas of 1.x": Tree(_vistas("labels"), VISTAS, "vistas"),
    "vistas_v2": Tree(_vistas("v2.0/labels"), VISTAS_V2),
    "vistas_cityscapes": Tree(_vistas("v1.2/labels"), VISTAS_TO_CITYSCAPES),
    "voc2012": Tree(
        """
        train JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png
        val JPEGImages/2007_000033.jpg SegmentationClass/2007_000033.png
        trainaug JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png
        trainaug JPEGImages/2008_000008.jpg SegmentationClassAug/2008_000008.png
        - SegmentationClassAug/2007_000032.png
        - JPEGImages/2008_000001.jpg
        """,
        VOC,
        texts=_VOC_LISTS,
    ),
}  # fmt: skip
"""By name; every form of a data set that is read."""

Pair = tuple[Path, "NDArray[Any] | None"]


def overrides(name: str) -> list[str]:
    """Of ``data=NAME``, to read a tree."""
    return [f"data.dataset.{setting}" for setting in TREES[name].settings]


def fabricate(name: str, root: Path) -> dict[str, list[Pair]]:
    """Write a tree; of each split the images, and the names of the classes in their masks, ``h w``."""
    tree, splits = TREES[name], {}
    for path, text in tree.texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for number, line in enumerate(tree.files.strip().splitlines()):
        split, image, *mask = line.split()
        random = np.random.default_rng(number)
        if not (root / image).exists():
            picture(root / image, random)
        names = write_mask(root / mask[0], tree.values, np.random.default_rng(sum(mask[0].encode()))) if mask else None
        splits.setdefault(split, []).append((root / image, names))
    splits.pop("-", None)
    return splits


def picture(path: Path, random: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), random.integers(0, 256, (24, 32, 3), dtype=np.uint8))


def write_mask(path: Path, values: Values, random: np.random.Generator) -> NDArray[Any]:
    """A mask that has every value, in the form that its suffix and the values ask for; the names of its classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = np.concatenate([np.arange(len(values)), random.integers(0, len(values), 24 * 32 - len(values))])
    chosen = random.permutation(chosen).reshape(24, 32)
    pixels = np.array([*values])[chosen]
    if path.suffix == ".mat":
        structure = {"GTcls": {"Segmentation": pixels.astype(np.uint8), "CategoriesPresent": np.unique(pixels)}}
        whole = {"LabelMap": pixels.astype(np.uint16)}
        scipy.io.savemat(path, structure if "cls" in path.parts else whole, do_compression=True)
    else:
        mask = Image.fromarray(pixels.astype(np.uint8))
        if path.parent.name in ("SegmentationClass", "labels"):  # of VOC and Vistas
            mask.putpalette(np.random.default_rng(5).integers(0, 256, 768, dtype=np.uint8).tobytes())
        mask.save(path)
    return np.array([*values.values()], dtype=object)[chosen]
