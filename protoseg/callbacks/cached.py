"""A frozen encoder's maps, kept on disk: steps read them, and go at the speed of what learns."""

from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from rich.progress import track
from torch.utils.data import Dataset

from protoseg.data import AdaptationDataModule
from protoseg.data.statistics import stamp
from protoseg.distributed import rank, world_size
from protoseg.files import write_file
from protoseg.models.segmentor import Segmentor
from protoseg.text import say
from protoseg.trained import digest, unmoved
from protoseg.types import Batch, ProtosegError


@dataclass
class KeptViews(Dataset[Batch]):
    """Batches of what ``CachedViews`` has written, by lists of an image's index and a seed that draws the view."""

    folder: Path
    names: list[str]  # of the images

    def __getitems__(self, items: list[tuple[int, int]]) -> Batch:
        files = [np.load(self.folder / f"{image}.npy", mmap_mode="r") for image, _ in items]
        rows = [file[seed % len(file)] for file, (_, seed) in zip(files, items, strict=True)]
        *maps, label = (torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0].dtype.names)
        size, names = torch.tensor([label.shape[1:]] * len(rows)), [self.names[image] for image, _ in items]
        return Batch(torch.empty(len(rows), 0), label.long(), size, names, maps)


class CachedViews(pl.Callback):
    """``views`` augmented views of each training image go through a frozen encoder once; steps read what it made.

    ``folder/KEY`` holds a ``.npy`` file for each image, with a row for each view: maps, float16 ``d h w``, and label.
    KEY is a hash of all that they depend on: encoder, data and its files, seed, precision, versions. A fill that was
    stopped goes on; each process fills a part. Raises ProtosegError at the start: an encoder that learns, or whose
    numbers float16 does not hold; what sees other images in every step; a disk that refuses.
    """

    def __init__(self, folder: str, views: int = 4) -> None:
        self.folder, self.views = Path(folder), views

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        data, model = trainer.datamodule, pl_module.model  # type: ignore[attr-defined]
        adapts = isinstance(data, AdaptationDataModule)
        if adapts or type(model) is not Segmentor or data.rare_classes or data.train_dataset().partial:
            wanted = "views that stay, and all classes annotated"
            raise ProtosegError(f"callbacks=cached: expected {wanted}, got adaptation, HRDA, rare_classes or annotated")
        if pl_module.config is None:
            raise ProtosegError("callbacks=cached: expected a module with its config, on which maps depend, got none")
        names = [str(image) for image, _ in data.train_dataset().samples]
        folder = self.folder / self._key(trainer, pl_module)
        missing = [i for i in range(rank(), len(names), world_size()) if not (folder / f"{i}.npy").is_file()]
        rank_zero_only(say)(f"{len(names)} images, {self.views} views each: {len(missing)} to be made, in {folder}")
        loader = data.views_loader(missing, self.views)
        for i, batch in track(zip(missing, loader, strict=True), "encoding", len(missing), disable=not missing):
            with trainer.precision_plugin.forward_context():
                maps = [each.half() for each in model.frozen_maps(batch.image.to(pl_module.device))]
            if not model.encoder.frozen or any(each.requires_grad or not each.isfinite().all() for each in maps):
                raise ProtosegError("callbacks=cached: expected encoder.freeze=true, numbers in float16, got others")
            label = batch.label.numpy().astype(np.min_scalar_type(-1 - data.label_space.num_classes))
            values = [*(each.cpu().numpy() for each in maps), label]
            row = np.dtype([(f"{number}", each.dtype, each.shape[1:]) for number, each in enumerate(values)])
            if i == missing[0]:
                rank_zero_only(say)(f"{self.views * row.itemsize * len(missing) / 1e6:.1f} MB are written")
            write_file(folder / f"{i}.npy", partial(np.save, arr=np.rec.fromarrays(values, row)))
        loader.close()
        trainer.strategy.barrier()  # what the others fill is there
        data.kept_views = KeptViews(folder, names)

    def _key(self, trainer: Any, module: Any) -> str:
        config, dataset = module.config, trainer.datamodule.train_dataset()
        loading = dict.fromkeys(("batch_size", "val_batch_size", "num_workers", "timeout", "val_split"))  # all the same
        augment = {f"augment.{name}": step for name, step in config.get("augment", {}).items()}
        settings = config.get("encoder"), {**config.get("data", {}), **loading, **augment}, module.model.encoder
        parts = dataset.parts or [dataset]
        files = (path for part in parts for image, mask in part.samples for path in (*part.reader.files(image), mask))
        read = [(str(path), *stamp(path)) for path in files]
        read += [(part.label_space, part.id_table.tolist(), part.colors) for part in parts]
        run = self.views, module.seed, trainer.precision, module.device.type
        versions = [version(package) for package in ("protoseg", "torch", "timm", "albumentations")]
        key = settings, read, run, versions, digest(unmoved(module.model.encoder))
        return sha256(repr(key).encode()).hexdigest()[:20]
