"""Label spaces, data sets, augmentation and the DataModules."""

from __future__ import annotations

from protoseg.data.adaptation import AdaptationDataModule
from protoseg.data.adverse import ACDC, DarkZurich
from protoseg.data.builtin import Streets
from protoseg.data.camvid import CamVid
from protoseg.data.cityscapes import Cityscapes
from protoseg.data.datamodule import SegmentationDataModule
from protoseg.data.dataset import Sample, SegmentationDataset
from protoseg.data.folder import ImageFolder
from protoseg.data.gta5 import GTA5
from protoseg.data.label_spaces import CAMVID, CITYSCAPES, SYNTHIA_13, SYNTHIA_16
from protoseg.data.rare_classes import RareClasses
from protoseg.data.synthia import Synthia
from protoseg.data.transforms import TrainTransform

__all__ = [
    "ACDC",
    "CAMVID",
    "CITYSCAPES",
    "GTA5",
    "SYNTHIA_13",
    "SYNTHIA_16",
    "AdaptationDataModule",
    "CamVid",
    "Cityscapes",
    "DarkZurich",
    "ImageFolder",
    "RareClasses",
    "Sample",
    "SegmentationDataModule",
    "SegmentationDataset",
    "Streets",
    "Synthia",
    "TrainTransform",
]
