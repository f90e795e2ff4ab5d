"""Label spaces, data sets, augmentation and the DataModules; each name is imported when it is first used (PEP 562)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protoseg.data.adaptation import AdaptationDataModule as AdaptationDataModule
    from protoseg.data.datamodule import SegmentationDataModule as SegmentationDataModule
    from protoseg.data.dataset import SegmentationDataset as SegmentationDataset

_MODULES = {
    "adaptation": "AdaptationDataModule",
    "class_file": "ClassFile read_class_file",
    "concat": "ConcatDataModule",
    "datamodule": "SegmentationDataModule",
    "dataset": "Sample SegmentationDataset",
    "decoding": "limit_pixels",
    "label_spaces": "ADE20K_150 ADE20K_FULL CAMVID CAMVID_TO_CITYSCAPES CITYSCAPES CITYSCAPES_TO_CAMVID COCO_STUFF "
    "SYNTHIA_13 SYNTHIA_16",
    "layout": "LayoutDataset",
    "own": "ImageFolder LabelledFolder",
    "public": "ACDC ADE20K GTA5 ADE20KFull CamVid Cityscapes COCOStuff DarkZurich Streets Synthia",
    "samplers": "RareClasses",
    "transforms": "TrainTransform",
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names.split():
            return getattr(import_module(f"protoseg.data.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
