"""Label spaces, data sets, augmentation and the DataModule."""

from __future__ import annotations

from protoseg.data.builtin import Streets
from protoseg.data.camvid import CamVid
from protoseg.data.cityscapes import Cityscapes
from protoseg.data.datamodule import SegmentationDataModule
from protoseg.data.dataset import Sample, SegmentationDataset
from protoseg.data.folder import ImageFolder
from protoseg.data.label_spaces import CAMVID, CITYSCAPES
from protoseg.data.transforms import TrainTransform

__all__ = [
    "CAMVID",
    "CITYSCAPES",
    "CamVid",
    "Cityscapes",
    "ImageFolder",
    "Sample",
    "SegmentationDataModule",
    "SegmentationDataset",
    "Streets",
    "TrainTransform",
]
