"""Label spaces, data sets, augmentation and the DataModules."""

from protoseg.data.adaptation import AdaptationDataModule
from protoseg.data.class_file import ClassFile, read_class_file
from protoseg.data.concat import ConcatDataModule
from protoseg.data.datamodule import SegmentationDataModule
from protoseg.data.dataset import Sample, SegmentationDataset
from protoseg.data.decoding import limit_pixels
from protoseg.data.label_spaces import (
    ADE20K_150,
    ADE20K_FULL,
    CAMVID,
    CAMVID_TO_CITYSCAPES,
    CITYSCAPES,
    CITYSCAPES_TO_CAMVID,
    COCO_STUFF,
    SYNTHIA_13,
    SYNTHIA_16,
)
from protoseg.data.layout import LayoutDataset
from protoseg.data.own import ImageFolder, LabelledFolder
from protoseg.data.public import (
    ACDC,
    ADE20K,
    GTA5,
    ADE20KFull,
    CamVid,
    Cityscapes,
    COCOStuff,
    DarkZurich,
    Streets,
    Synthia,
)
from protoseg.data.samplers import RareClasses
from protoseg.data.transforms import TrainTransform
