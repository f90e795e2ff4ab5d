"""Cost of reading and augmenting training images on one core, against Pillow and torchvision v2, run in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

# The data libraries are imported where they are used: the other benchmarks need neither OpenCV nor albumentations.

NOISE = 1.7
"""Standard deviation of the grain that makes PNGs as large as those of Cityscapes, about 2.2 MB (11 GB for 5000)."""


class DataSetting(NamedTuple):
    """Sizes in pixels; the defaults are Cityscapes'. GTA5's: --width 1914 --height 1052 --crop-width 512."""

    width: int = 2048
    height: int = 1024
    crop_height: int = 512
    crop_width: int = 1024
    images: int = 8

    def describe(self) -> str:
        return f"{self.images} PNGs of {self.width} x {self.height}, crops of {self.crop_width} x {self.crop_height}"


def data_steps(setting: DataSetting, device: torch.device) -> dict[str, Callable[[], object]]:
    """Read ``images`` images by each pipeline, the plain one first. On one core, whatever ``device`` is."""
    import cv2

    from protoseg.data.dataset import to_sample
    from protoseg.data.files import read_image, read_label
    from protoseg.data.label_spaces import Ids, read_ids
    from protoseg.data.transforms import TrainTransform

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    ours = TrainTransform((setting.crop_height, setting.crop_width))
    table = read_ids("camvid")
    plain = plain_pipeline(setting, table)
    seeds = count()

    def decode(image: Path, label: Path) -> tuple[NDArray[np.uint8], Ids]:
        return read_image(image), read_label(label, table)

    def augment(image: Path, label: Path) -> object:
        return to_sample(*ours(*decode(image, label), seed=next(seeds)), str(image))

    folder = tempfile.TemporaryDirectory()
    files = photo_like(setting, Path(folder.name))
    packed = [(_packed(image, 0), _packed(label, 1)) for image, label in files]

    def over(pairs: list[tuple[Path, Path]], step: Callable[[Path, Path], object]) -> Callable[[], object]:
        # The folder goes when the last step goes.
        return lambda _=folder: [step(*pair) for pair in pairs]  # type: ignore[misc]

    return {
        "Pillow + torchvision v2": over(files, plain),
        "protoseg": over(files, augment),
        "decoding alone": over(files, decode),
        "protoseg, packed": over(packed, augment),
        "decoding alone, packed": over(packed, decode),
    }


def _packed(path: Path, level: int) -> Path:
    from protoseg.data.export import packed_png

    copy = path.with_stem(f"{path.stem}_packed")
    copy.write_bytes(packed_png(path, level) or path.read_bytes())
    return copy


def plain_pipeline(setting: DataSetting, table: NDArray[np.uint8]) -> Callable[[Path, Path], tuple[Tensor, Tensor]]:
    """What one would write with Pillow and torchvision v2: decode, scale, crop, flip, colours, with our strengths.

    On Pillow's images, which took 0.91 of the time that ``tv_tensors.Image`` did.
    """
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    from protoseg.data.label_spaces import FILE_IGNORED
    from protoseg.data.transforms import BRIGHTNESS, CONTRAST, HUE, PAD_IMAGE, SATURATION

    fill = {Image.Image: PAD_IMAGE, tv_tensors.Mask: FILE_IGNORED}
    jitter = partial(v2.RandomApply, p=0.5)
    steps = v2.Compose(
        [
            v2.ScaleJitter((setting.height, setting.width), (0.5, 2.0)),
            v2.RandomCrop((setting.crop_height, setting.crop_width), pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(),
            jitter([v2.ColorJitter(brightness=BRIGHTNESS)]),
            jitter([v2.ColorJitter(contrast=CONTRAST)]),
            jitter([v2.ColorJitter(saturation=SATURATION)]),
            jitter([v2.ColorJitter(hue=HUE)]),
        ]
    )

    def read(image: Path, label: Path) -> tuple[Tensor, Tensor]:
        ids = tv_tensors.Mask(torch.from_numpy(table[np.asarray(Image.open(label))]))
        photo, ids = steps(Image.open(image).convert("RGB"), ids)
        return v2.functional.pil_to_tensor(photo), ids.long()

    return read


def photo_like(setting: DataSetting, folder: Path) -> list[tuple[Path, Path]]:
    """Image and mask PNGs made of the built-in scenes, enlarged, with grain so that they decode as slowly as photos."""
    from protoseg.data import Streets

    data, random = Streets(), np.random.default_rng(0)
    size = setting.width, setting.height
    files = []
    for i in range(setting.images):
        image, label = (Image.open(path or "") for path in data.samples[i * len(data) // setting.images])
        grain = random.normal(0, NOISE, (setting.height, setting.width, 1))
        photo = np.asarray(image.resize(size, Image.Resampling.BICUBIC)) + grain
        paths = folder / f"{i}.png", folder / f"{i}_label.png"
        Image.fromarray(photo.round().clip(0, 255).astype(np.uint8)).save(paths[0])
        label.resize(size, Image.Resampling.NEAREST).save(paths[1])
        files.append(paths)
    return files
