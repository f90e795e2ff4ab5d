"""Teaching by clicks: what is said of pixels, and what follows for all images of a folder.

Everything follows from the list of actions: evidence (which cells of the network's grid are of which class), taught
classes, labels. So undoing is leaving the last action out, and the same actions make the same model again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from protoseg.checkpoint import save_checkpoint
from protoseg.data.class_file import with_made_colors
from protoseg.data.export import write_form
from protoseg.data.label_spaces import FILE_IGNORED, UNKNOWN_ID
from protoseg.data.statistics import spread
from protoseg.files import disk_refusal, write_file
from protoseg.functional.discriminant import Statistics, posterior_mean
from protoseg.functional.resize import upsample_logits
from protoseg.functional.sampling import pixel_rows
from protoseg.nn import Discriminant
from protoseg.nn.discriminant import frozen_maps
from protoseg.nn.heads import NO_CHANNEL
from protoseg.teach.edit import editable_memories, fingerprint
from protoseg.trained import TrainedFile
from protoseg.types import LabelSpace, ProtosegError, SegOutput

from .evidence import STAND_IN, Evidence, folder_statistics, publish, taught_alone, teach_pixels, without_stand_in
from .photos import Label, Photos, Points, painted

NONE = FILE_IGNORED  # in label maps: no class
LOOKED_AT = 16  # images, for the statistics of a network that has none
NEAR = 1  # cells around a click that are taught with it
STRIP, WORTH = 8, 8  # images of which it is told how much a click changes them; pixels of an image that are offered
Action = dict[str, Any]


class Session(Photos):
    """A folder of images that is labelled by teaching a network; images and classes go by their places in the lists.

    In ``out`` lies all that is written, unless ``read_only``: one session at a time writes there, and goes on with what
    an earlier one wrote. The network is one whose classes can be changed, or of no class (:func:`blank_file` of
    ``evidence.py``). Methods raise ProtosegError at wrong input, and change nothing; where the disk refuses, what was
    said counts.
    """

    def __init__(
        self, file: TrainedFile, images: str | Path, out: Path, read_only: bool = False, device: Any = "cpu"
    ) -> None:
        editable_memories(file)
        super().__init__(file, images, Path(tempfile.mkdtemp()) if read_only else out / ".maps", device)
        self.file, self.out, self.read_only, self.lock = file, out, read_only, threading.RLock()
        self.blank = file.label_space.classes == STAND_IN.classes
        self.walk = np.random.default_rng(0).permutation(len(self.paths)).tolist()  # ranked first: some of all
        self.actions, self.undone, self.version = list[Action](), list[Action](), 0
        self._evidence, self._told = dict[int, Label](), dict[int, tuple[list[int], Tensor, list[int]]]()
        self.ranked, self._answers = dict[int, tuple[Any, float, list[Any]]](), dict[int, Tensor]()
        self._taught: Discriminant | None = None
        self.journal = out if out.is_file() else out / "clicks.jsonl"  # a file: to make its model again
        head: Action = {"network": str(file.path), "blank": self.blank, "images": str(Path(images).absolute())}
        self._only = FileLock(self.journal.with_name(".lock"))
        try:
            if not read_only:
                out.mkdir(parents=True, exist_ok=True)
                self._only.acquire(timeout=0)
            self._go_on(head | {"base": fingerprint(file.content)})
        except Timeout as error:
            text = f"{out}: expected a folder that no other page writes to, got one in use"
            raise ProtosegError(f"{text}: close that page's program, or look on with --read-only") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            self._only.release()
            text = f"{self.journal}: expected clicks on {self.root} that taught {file.path}, got others ({error})"
            raise ProtosegError(f"{text}: put back what was there, or choose another folder with --out") from error

    def _go_on(self, head: Action) -> None:
        """Let the journal's actions count; a last line that was cut short is left out."""
        shutil.rmtree(self.maps, ignore_errors=True)  # of a session that was killed
        self._end, self._pending = 0, [head]
        if self.journal.is_file() and (whole := self.journal.read_bytes().rpartition(b"\n")[0]):
            first, *actions = map(json.loads, whole.split(b"\n"))
            if first["base"] != head["base"]:
                raise ValueError(f"of {first['network']}, another network or other classes")
            before = Path(first["images"])
            if before.exists() and not before.samefile(head["images"]):  # else it was moved
                raise ValueError(f"on {before}")
            for action in actions:
                self._apply(action)
            self._end, self._pending = len(whole) + 1, []

    def close(self) -> None:
        """Let another session have the folder."""
        shutil.rmtree(self.maps, ignore_errors=True)
        self._only.release()

    def add_class(self, name: str, color: Sequence[int] | None = None) -> int:
        """A new class, of a colour that is made unless given; its id."""
        space = self.space
        if name in space.classes or not 0 < len(name.strip()) <= 200 or "${" in name:
            raise ProtosegError(f"class: expected a name of 1 to 200 letters that no class has, got {name!r}")
        chosen = [*(color or with_made_colors([None], space.colors)[0])]
        if tuple(chosen) in space.colors or len(chosen) != 3 or not {*chosen} <= {*range(256)}:
            raise ProtosegError(f"class: expected a colour, three times 0 to 255, that no class has, got {chosen}")
        if space.num_classes >= UNKNOWN_ID:
            raise ProtosegError(f"class: expected at most {UNKNOWN_ID} classes, as many as label files hold, got more")
        self.act({"do": "class", "name": name, "color": chosen})
        return space.num_classes

    def click(self, i: int, x: float, y: float, class_id: int, is_not: bool = False) -> None:
        """Say of a pixel, and of what is beside it, that it is of a class.

        Or that it ``is_not``: it is then taught as what it would be otherwise.
        """
        (height, width), (rows, columns), name = self.sizes[i], self.grid(i), self.space.classes[class_id]
        if not (0 <= x < width and 0 <= y < height):
            raise ProtosegError(f"{self.names[i]}: expected a pixel of {width} x {height}, got {x}, {y}")
        self.output(i)  # a damaged one has none
        near, more = np.zeros((rows, columns), bool), {}
        row, column = int(y) // self.model.stride, int(x) // self.model.stride
        near[max(0, row - NEAR) : row + NEAR + 1, max(0, column - NEAR) : column + NEAR + 1] = True
        cells = np.flatnonzero(near).tolist()
        if is_not:
            scores = pixel_rows(self.scores(i))[cells].mean(0)
            scores[class_id] = NO_CHANNEL
            if scores.max() <= NO_CHANNEL:
                raise ProtosegError(f"expected another class that it could be, got {name!r} alone: teach another first")
            name, more = self.space.classes[int(scores.argmax())], {"not": name}
        self.act({"do": "teach", "image": self.names[i], "class": name, "at": [x, y], "cells": cells, **more})

    def stroke(self, i: int, points: Points, radius: float, class_id: int) -> None:
        """Say of pixels within ``radius`` of a line that they are of a class."""
        mask, (rows, columns), stride = painted(self.sizes[i], points, radius), self.grid(i), self.model.stride
        whole = np.zeros((rows * stride, columns * stride), np.uint8)
        whole[: len(mask), : len(mask[0])] = mask
        share = whole.reshape(rows, stride, columns, stride).mean((1, 3))
        cells = np.flatnonzero(share >= min(0.5, share.max())).tolist()  # of a thin line those that have most of it
        self.act({"do": "teach", "image": self.names[i], "class": self.space.classes[class_id], "cells": cells})

    def correct(self, i: int, points: Points, radius: float | None, class_id: int) -> None:
        """Change an image's label alone: within ``radius`` of a line or, without it, in a polygon; 255: no class."""
        painted(self.sizes[i], points, radius)
        name = None if class_id == NONE else self.space.classes[class_id]
        self.act({"do": "correct", "image": self.names[i], "class": name, "points": [*points], "radius": radius})

    def accept(self, i: int, done: bool = True) -> None:
        """The label of an image stays as it is and goes to the labelled folder, or, not ``done``, no longer."""
        self.output(i)
        if done and not self.space.classes:
            raise ProtosegError("accept: expected a label with classes, got none: add a class first")
        self.act({"do": "done", "image": self.names[i], "done": done})

    def act(self, action: Action) -> None:
        """Let an action count, and write it; ``undo`` takes the last one back, ``redo`` says that again."""
        with self.lock:
            if self.read_only:
                raise ProtosegError("expected a session that writes, got one of --read-only")
            if not {"undo": self.actions, "redo": self.undone}.get(action["do"], True):
                raise ProtosegError(f"{action['do']}: expected an action before it, got none")
            moved = self._apply(action)
            try:
                self._write(action)
            finally:
                if moved["do"] in ("done", "correct"):
                    i = self.names.index(moved["image"])
                    kept = self._accepted(i)
                    if action["do"] == "done":
                        kept.unlink(missing_ok=True)
                    elif action["do"] == "undo" and not kept.is_file():  # of an older session: it is found anew
                        self._published(i).unlink(missing_ok=True)
                    label = self.labels(i) if self.names[i] in self.done else None
                    if action["do"] == "done" and label is not None:
                        write_file(kept, partial(Image.fromarray(label).save, format="PNG"))
                    files = self.dataset.reader.files(self.paths[i])
                    publish(self.out / "labelled", self.names[i], files, label, self.space)

    def _write(self, action: Action) -> None:
        """Append an action to the journal; one that the disk refuses is written with the next."""
        self._pending.append(action)
        lines = "".join(f"{json.dumps(each)}\n" for each in self._pending).encode()
        try:
            with open(self.journal, "r+b" if self.journal.exists() else "wb") as file:
                file.seek(self._end)
                file.truncate()  # what an earlier try has left
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            text = f"{disk_refusal(error, self.journal)}. What you did counts, and is written with what follows"
            raise ProtosegError(f"{text}: free space") from error
        self._pending, self._end = [], self._end + len(lines)

    def _apply(self, action: Action) -> Action:
        """Let an action count; returns it, or the one that it takes or brings back."""
        source = {"undo": self.actions, "redo": self.undone}.get(action["do"])
        moved = action if source is None else source.pop()
        (self.undone if action["do"] == "undo" else self.actions).append(moved)
        if source is None:
            self.undone.clear()
        i = self.names.index(moved["image"]) if "image" in moved else -1
        if moved["do"] in ("teach", "class"):
            self._evidence.pop(i, None)
            self._told.pop(i, None)
            self._taught = None
        self.version += 1
        return moved

    @property
    def space(self) -> LabelSpace:
        """The classes, the network's own ones first."""
        own = LabelSpace("clicks", (), ()) if self.blank else self.file.label_space
        made = [action for action in self.actions if action["do"] == "class"]
        names = (*own.classes, *(action["name"] for action in made))
        return LabelSpace(own.name, names, (*own.colors, *(tuple(action["color"]) for action in made)), shown=own.shown)

    @property
    def done(self) -> set[str]:
        """Names of the images that are accepted."""
        last = {action["image"]: action["done"] for action in self.actions if action["do"] == "done"}
        return {name for name, done in last.items() if done}

    @property
    def clicked(self) -> list[int]:
        """Images whose pixels were said to be of a class."""
        said = {action["image"] for action in self.actions if action["do"] == "teach"}
        return [i for i, name in enumerate(self.names) if name in said]

    def of(self, i: int, kind: str) -> list[Action]:
        """The actions of a kind on an image."""
        return [each for each in self.actions if each["do"] == kind and each["image"] == self.names[i]]

    def evidence(self, i: int) -> Label:
        """What was said of the cells of an image, ``h w`` on the network's grid: a class, or 255."""
        if i not in self._evidence:
            self._evidence[i] = cells = np.full(self.grid(i), NONE, np.uint8)
            for action in self.of(i, "teach"):
                cells.flat[action["cells"]] = self.space.classes.index(action["class"])
        return self._evidence[i]

    def _published(self, i: int) -> Path:
        return (self.out / "labelled/masks" / self.names[i]).with_suffix(".png")

    def _accepted(self, i: int) -> Path:
        """The label of an image as it was when its last ``done`` was said: what undoing a correction comes back to."""
        return self.out / "accepted" / f"{self.names[i]}.{len(self.of(i, 'done'))}.png"

    def known(self) -> Statistics:
        """By what classes are taught: the checkpoint's statistics, or where it has none those of images here."""
        with self.lock:
            if self.file.statistics() is None:
                photos = []
                for i in spread(len(self.paths), LOOKED_AT):
                    with suppress(ProtosegError):  # a damaged one
                        photos.append(self.image(i))
                self.file = folder_statistics(self.file, photos, self.device)
            known = self.file.statistics()
            assert known is not None
            return known

    def taught(self) -> Discriminant | None:
        """What finds the taught classes; None where there are none."""
        with self.lock:
            if self._taught is None and (clicked := self.clicked):
                means, counts = defaultdict[int, list[Tensor]](list), defaultdict[int, list[int]](list)
                for i in clicked:
                    self._told[i] = told = self._told.get(i) or self._said_in(i)
                    for class_id, mean, cells in zip(*told, strict=True):
                        means[class_id].append(mean)
                        counts[class_id].append(cells)
                known, first = self.known(), int(self.blank)  # there class 0 is the stand-in
                placed = [posterior_mean(known, torch.stack(means[c]), torch.tensor(counts[c])) for c in means]
                known = known.with_taught(placed, [c + first for c in means], self.space.num_classes + first)
                known = taught_alone(known) if self.blank else known
                channels = [self.model.head.embedding_dim, *self.model.encoder.channels]
                self._taught = Discriminant(known, channels, self.model.feature_strides, self.model.stride)
            return self._taught or self.model.discriminant

    def _said_in(self, i: int) -> tuple[list[int], Tensor, list[int]]:
        """The classes that cells of an image were said to be, their mean whitened maps, the numbers of cells."""
        there = torch.from_numpy(self.evidence(i) != NONE).flatten().nonzero().flatten()
        of, strides = torch.from_numpy(self.evidence(i)).flatten()[there], self.model.feature_strides
        maps = frozen_maps(self.output(i), self.model.stride, strides, there)
        classes, counts = of.unique(return_counts=True)
        return (
            classes.tolist(),
            self.known().whitened(torch.stack([maps[of == c].mean(0) for c in classes])),
            counts.tolist(),
        )

    def scores(self, i: int) -> Tensor:
        """Logits of all classes for an image on the network's grid, ``1 c h w``."""
        return self.scores_of(self.output(i))

    @torch.no_grad()
    def scores_of(self, seen: SegOutput) -> Tensor:
        """The same for what :meth:`seen` gave."""
        taught = self.taught()
        logits = seen.logits.new_full((1, self.space.num_classes, *seen.logits.shape[2:]), NO_CHANNEL)
        if not self.blank:
            logits[:, : seen.logits.shape[1]] = seen.logits
        elif taught is not None:
            logits[:, taught.of[taught.old[0]]] = 0
        return logits if taught is None else taught(seen._replace(logits=logits)).logits

    def predicted(self, seen: SegOutput, size: tuple[int, int]) -> Label:
        """The classes of a photo of this height and width, ``H W``, by what :meth:`seen` gave; 255: there is none."""
        scores, label, (height, width) = self.scores_of(seen), np.full(size, NONE, np.uint8), size
        best = np.full(size, NO_CHANNEL, np.float32)
        for c in range(scores.shape[1]):  # one after the other: less memory, half of the time
            rows = upsample_logits(scores[:, c : c + 1], (height, width), self.model.stride, seen.align_corners)
            one = rows[0, 0].numpy()
            label[one > best] = c
            np.maximum(best, one, out=best)
        return label

    def labels(self, i: int) -> Label:
        """The label of an image, ``H W``, 255 where there is no class: as it was accepted, or is found now."""
        with self.lock:
            (height, width), stride = self.sizes[i], self.model.stride
            kept = [path for path in (self._accepted(i), self._published(i)) if path.is_file()]
            if self.names[i] in self.done and kept:
                label: Label = np.array(Image.open(kept[0]))
            else:
                said = self.evidence(i).repeat(stride, 0).repeat(stride, 1)[:height, :width]
                label = np.where(said == NONE, self.predicted(self.output(i), (height, width)), said)
            for action in self.of(i, "correct"):
                name, mask = action["class"], painted((height, width), action["points"], action["radius"])
                label[mask > 0] = NONE if name is None else self.space.classes.index(name)
            return label

    def worth(self, i: int) -> tuple[float, list[tuple[int, int, float]]]:
        """How doubtful an image is, 0 to 1, and its pixels most worth a click: x, y, and the entropy around them.

        It is the mean of 5 x 5 cells, and none where it was said what they are (docs/label.md compares rankings).
        """
        known, taught = self.ranked.get(i), self.taught()
        if known is None or known[0] is not taught:
            (doubt, entropy), stride = self._doubt(i), self.model.stride
            area = F.avg_pool2d(entropy, 5, 1, 2)
            peaks = area.where(area == F.max_pool2d(area, 9, 1, 4), 0)[0, 0]
            best = peaks.flatten().topk(min(WORTH, peaks.numel()))
            points = []
            for score, cell in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                y, x = (at * stride + stride // 2 for at in divmod(cell, peaks.shape[1]))
                points.append((min(x, self.sizes[i][1] - 1), min(y, self.sizes[i][0] - 1), round(score, 4)))
            self.ranked[i] = known = (taught, doubt, [point for point in points if point[2] > 0])
        return known[1], known[2]

    def _doubt(self, i: int) -> tuple[float, Tensor]:
        """How likely a label is wrong, mean of the cells; the entropy of each, ``1 1 h w``."""
        scores, taught, said = self.scores(i), self.taught(), torch.from_numpy(self.evidence(i) != NONE)
        if scores.shape[1] < 2:
            return 0.0, torch.zeros(1, 1, *scores.shape[2:])
        (best, second), classes = (part.split(1, 1) if part.is_floating_point() else part for part in scores.topk(2, 1))
        if i in self.walk[:STRIP]:
            self._answers.setdefault(i, classes[:, 0])
        lead = (best - second).masked_fill(said, torch.inf)
        odds = lead if taught is None else taught.log_odds(lead, classes[:, :1])
        entropy = torch.special.entr(scores.softmax(1)).sum(1, keepdim=True)
        return float((-odds).sigmoid().mean()), entropy.masked_fill(said, 0)

    def rank_one(self) -> bool:
        """Look at an image that was not ranked yet, or not by what is taught now; False where there is none."""
        taught, waiting = self.taught(), [i for i in self.walk if i not in self.errors]
        old = [i for i in waiting if i not in self.ranked] or [i for i in waiting if self.ranked[i][0] is not taught]
        with suppress(ProtosegError):  # a damaged one, which is noted
            self.worth(*old[:1]) if old else None
        return bool(old)

    def order(self) -> list[int]:
        """Images that are not damaged by their pixel most worth a click, then those that are not ranked yet."""
        first = {i: points[0][2] for i, (_, _, points) in self.ranked.items() if points}
        return sorted({*range(len(self.names))} - self.errors.keys(), key=lambda i: -first.get(i, -1))

    def changed(self, besides: int | None = None) -> list[int]:
        """Of some images those whose labels have changed since it was asked last, most first."""
        shares, end = {}, time.monotonic() + 0.1
        for i in [i for i in self._answers if i != besides]:
            if time.monotonic() > end:
                break
            before, self._answers[i] = self._answers[i], self.scores(i).argmax(1)
            shares[i] = float((before != self._answers[i]).float().mean())
        return sorted((i for i, share in shares.items() if share > 0), key=lambda i: -shares[i])

    def content(self) -> dict[str, Any]:
        """The taught network as a checkpoint; raises ProtosegError where nothing was taught."""
        cells = {self.paths[i]: self.evidence(i) for i in self.clicked}
        ids = sorted({c for said in cells.values() for c in np.unique(said).tolist()} - {NONE})
        if not ids:
            raise ProtosegError("expected a class that was taught, got no click: click first")
        self.known()  # in the file from now on
        dataset = Evidence(cells, self.model.stride, self.dataset, self.space)
        content = teach_pixels(self.file, dataset, [self.space.classes[c] for c in ids], self.device)
        return without_stand_in(content) if self.blank else content

    def save(self) -> dict[str, str | None]:
        """Write what was taught as a checkpoint, and accepted labels as COCO and LabelMe have them; where each is."""
        folder, taught = self.out / "labelled", self.out / "taught.ckpt"
        with self.lock:
            if self.clicked:
                save_checkpoint(self.content(), taught)
            if self.done:
                write_form(folder, folder, "coco")
                write_form(folder, folder / "images", "labelme")
            of_labels = {"folder": folder, "coco": folder / "coco.json", "labelme": folder / "images"}
            found = {name: str(path) if self.done else None for name, path in of_labels.items()}
            return {"checkpoint": str(taught) if self.clicked else None, **found}
