"""Label maps of a folder of photos: a plain loop with a model of segmentation-models-pytorch, and ``predict``.

The network is the same (encoder by timm, FPN by smp, ImageNet's weights in neither), the loop is what one would write:
open, normalise, forward, argmax, save as PNG. ``predict`` reads the next photo and writes the last label map while the
network is at work. ``--photos 1000`` for a folder as large as a user's.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.against import our_network, plain_network
from protoseg.nn import ParametricHead


class PredictingSetting(NamedTuple):
    """Sizes in pixels, multiples of 32."""

    photos: int = 100
    width: int = 640
    height: int = 480

    @property
    def images(self) -> int:
        """Of one run, for the images per second."""
        return self.photos

    def describe(self) -> str:
        return f"lite0 + FPN, {self.photos} JPEGs of {self.width} x {self.height}, label PNGs"


def predicting_steps(setting: PredictingSetting, device: torch.device) -> dict[str, Callable[[], object]]:
    """Both ways by name, each into its own folder, which is overwritten."""
    from benchmarks.loader import photos
    from protoseg.data import Streets
    from protoseg.evaluation.predict import predict
    from protoseg.evaluation.predictor import Predictor

    folder = tempfile.TemporaryDirectory()
    root = Path(folder.name)
    for name in ("photos", "plain", "ours"):
        (root / name).mkdir()
    few = photos(setting._replace(photos=min(setting.photos, 40)), root)
    for i in range(setting.photos):
        (root / "photos" / f"{i:05d}.jpg").write_bytes(few[i % len(few)][0].read_bytes())
    space = Streets().label_space
    plain, ours = plain_network(space.num_classes), our_network(ParametricHead, space.num_classes)
    for model in (plain, ours):
        model.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @torch.inference_mode()
    def loop(_: object = folder) -> None:  # the folder goes when the last step goes
        for path in sorted((root / "photos").iterdir()):
            picture = np.array(Image.open(path).convert("RGB"))
            image = torch.from_numpy(picture).permute(2, 0, 1)[None].to(device).float() / 127.5 - 1
            label = plain(image).argmax(1)[0].byte().cpu().numpy()
            Image.fromarray(label).save(root / "plain" / f"{path.stem}.png")

    def package(_: object = folder) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            predict(ours, root / "photos", Predictor(), space, root / "ours", device, ("labels",), overwrite=True)

    return {"smp, a loop": loop, "protoseg": package}
