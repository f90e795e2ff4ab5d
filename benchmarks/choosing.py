"""Which state or which setting, without a label of the target: ``python -m benchmarks.choosing WHERE …``.

Each WHERE is a folder of states of one adaptation (RUN/checkpoints with ``step=50.ckpt``, …), or a checkpoint; the
checkpoints together are trainings that differ in a setting. Of every state the teacher is judged by labels (mIoU on
the target's judged images, if there are any), and by what can be known without them, on the same images, or, where
none is judged, on those of training:

- source: mIoU of the student on every tenth of the source's training images, whose labels it was taught;
- certainty: 1 - the mean entropy of the teacher's class probabilities, as a share of the largest;
- information: the entropy of the mean probability less the mean entropy (Shi and Sha, ICML 2012, arXiv 1206.6438): sure
  of each pixel, and not of one class everywhere;
- agreement: the share of pixels that student and teacher give the same class;
- reliable: the share of pixels whose confidence reaches the method's threshold (class weights in it, whatever
  ``method.unweighted`` was).

Printed is what was found of every state; and, for each sign and for the last state, how many points of mIoU its choice
is below the best of the folder's states, mean and most over the folders, how often by no more than one, and the same of
all folders' states. Needs a teacher that is an average: where it is the student itself, they always agree.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from protoseg.evaluation.metrics import SegmentationMetrics
from protoseg.evaluation.predictor import Predictor, choose_device
from protoseg.text import markdown_table
from protoseg.trained import open_file

SIGNS = ("source", "certainty", "information", "agreement", "reliable", "last")


def entropy(probability: Tensor) -> Tensor:
    """Of ``c …``, as a share of the largest that c classes can have."""
    return torch.special.entr(probability).sum(0) / torch.tensor(float(len(probability))).log()


@torch.inference_mode()
def state_signs(checkpoint: Path) -> dict[str, float]:
    """All signs of a state, its step as ``last``, and, where the target has labels, ``mIoU`` in %."""
    file = open_file(checkpoint)
    data: Any = file.datamodule(num_workers=0)
    device = choose_device(None)
    student, teacher = (file.model(network).to(device) for network in ("student", "teacher"))
    threshold = file.content["protoseg"]["config"]["method"]["threshold"]
    judged = data.target.val_split is not None
    target = data.target.dataset(data.target.val_split) if judged else data.target.train_dataset()
    source = data.source.dataset(data.source.train_split)
    by_labels, of_source = SegmentationMetrics(file.label_space), SegmentationMetrics(file.label_space)
    seen, mixed, predictor = [], [], Predictor()
    for index in range(len(target)):
        image, label, _ = target[index]
        size = torch.tensor([label.shape])
        (mine,), (said,) = (predictor.doubt(model, image[None].to(device), size, True) for model in (student, teacher))
        assert said.probabilities is not None
        by_labels.update(said.label.cpu(), label)
        agreed, sure = mine.label == said.label, said.confidence >= threshold
        seen.append(torch.stack([1 - entropy(said.probabilities).mean(), agreed.float().mean(), sure.float().mean()]))
        mixed.append(said.probabilities.mean((1, 2)))
    for index in range(0, len(source), 10):
        image, label, _ = source[index]
        size = torch.tensor([label.shape])
        of_source.update(predictor.predict(student, image[None].to(device), size)[0].cpu(), label)
    certainty, agreement, reliable = torch.stack(seen).mean(0).tolist()
    return {
        "certainty": certainty,
        "agreement": agreement,
        "reliable": reliable,
        "information": float(entropy(torch.stack(mixed).mean(0))) + certainty - 1,
        "source": 100 * float(of_source.compute()["mIoU"]),
        "last": float(file.content["global_step"]),
        **({"mIoU": 100 * float(by_labels.compute()["mIoU"])} if judged else {}),
    }


def listing(states: dict[str, dict[str, float]]) -> str:
    """Markdown: what was found of each state, by its name."""
    rows = [(name, *map("{:.4g}".format, state.values())) for name, state in states.items()]
    return markdown_table(("state", *next(iter(states.values()))), rows)


def table(runs: Sequence[Sequence[dict[str, float]]], signs: Sequence[str] = SIGNS) -> str:
    """Markdown: how far the choice of each sign is from the best, in points of mIoU."""
    rows = []
    best = max(state["mIoU"] for run in runs for state in run)
    for sign in signs:
        lost = [max(s["mIoU"] for s in run) - max(run, key=lambda s: s[sign])["mIoU"] for run in runs]
        overall = best - max((state for run in runs for state in run), key=lambda s: s[sign])["mIoU"]
        cells = (sign, f"{mean(lost):.1f}", f"{max(lost):.1f}", f"{sum(x <= 1 for x in lost)} of {len(lost)}")
        rows.append((*cells, "–" if sign == "last" else f"{overall:.1f}"))
    header = ("chosen by", "below the best, mean", "at most", "within 1 point", "of all runs' states")
    return markdown_table(header, rows)


def main() -> None:
    """Entry of ``python -m benchmarks.choosing``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", nargs="+", type=Path, help="folders RUN/checkpoints of states; or checkpoints")
    parser.add_argument("--out", type=Path, help="JSON of all that is found")
    parser.add_argument("--threads", type=int, default=2, help="2")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    states = {str(place): sorted(place.glob("step=*.ckpt"), key=_step) for place in options.where if place.is_dir()}
    if settings := [path for path in options.where if not path.is_dir()]:
        states["settings"] = settings
    found: dict[str, dict[str, dict[str, float]]] = {}
    for run, paths in states.items():
        if not paths:
            sys.exit(f"{run}: expected states step=N.ckpt, got none")
        shown = track(paths, run, disable=not sys.stderr.isatty())
        found[run] = {str(path): state_signs(path) for path in shown}
        if options.out:
            options.out.write_text(json.dumps(found, indent=1))
        print(listing(found[run]))
    runs = [[*run.values()] for run in found.values()]
    if all("mIoU" in state for run in runs for state in run):
        print(table(runs, SIGNS[:-1] if settings else SIGNS))


def _step(state: Path) -> int:
    return int(state.stem.partition("=")[2])


if __name__ == "__main__":
    main()
