"""Steps a second, memory and bytes on the wire of the papers' settings on 1, 8 and 64 GPUs, on paper.

``python -m benchmarks.scale``. A step is run once on tensors without numbers (torch's ``FakeTensorMode``: shapes), and
every operation of it is counted: its floating-point operations, the bytes it reads and writes, and the bytes that are
alive. No operation is faster than its arithmetic or its bytes allow; the sum over all is the *bound*. How far a real
step stays behind it is taken from one measurement (the softmax twin on an H100, ``docs/speed.md``), and the prediction
is checked against the other ones there. Communication: what the step hands to ``torch.distributed`` is counted,
gradients and SyncBN by their sizes, against the nominal bandwidths below. No GPU is needed.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counting import COPY, CountOperations, processes, ring_times, without_numbers
from benchmarks.twins import learn_from
from protoseg.losses import (
    CrossEntropy,
    DetailCrossEntropy,
    Mixed,
    PixelPrototypeContrast,
    PixelPrototypeDistance,
    Seen,
    Step,
    Term,
)
from protoseg.losses.contrast import PixelToPixelContrast
from protoseg.models.daformer import DAFormerDecoder
from protoseg.models.decoders import HRNetDecoder, SegFormerDecoder
from protoseg.models.encoders import MiTEncoder, TimmEncoder
from protoseg.models.hrda import HRDASegmentor
from protoseg.models.segmentor import Segmentor
from protoseg.nn import ParametricHead, PrototypeHead

# Nominal, one direction, a GPU: NVLink 4, and one InfiniBand NDR port.
WIRE = {8: 450e9, 64: 50e9}
# Seconds of a small collective, assumed, not measured: inside a machine, and between eight.
LATENCY = {8: 20e-6, 64: 60e-6}
BEHIND_BACKWARD = 0.5  # share of a step behind which gradients can travel, assumed
CLASSES = 19


class Counts(NamedTuple):
    """Of one step on one GPU."""

    flops: float
    bytes: float  # read and written
    seconds: float  # the bound
    peak: float  # bytes alive at the worst moment
    collectives: int  # small ones, of losses and prototypes
    collective_bytes: float  # that a GPU sends in them


class Setting(NamedTuple):
    """Something that a paper trains.

    Attributes:
        make: its network.
        step: runs forward and backward of it on fake tensors, given the network and the size of a batch.
        size: images a GPU, height, width.
        half: mixed precision.
        state: bytes a parameter that a step's optimizer (and teacher) reads and writes.
        kept: bytes a parameter in memory besides activations: weight, gradient, moments, teacher, ImageNet's encoder.
    """

    make: Callable[[], Segmentor]
    step: Callable[[Segmentor, tuple[int, int, int]], None]
    size: tuple[int, int, int]
    half: bool
    state: int
    kept: int


def hrnet(head: Callable[..., Any], width: int) -> Segmentor:
    return Segmentor(TimmEncoder(f"hrnet_w{width}", pretrained=False), HRNetDecoder, head, CLASSES)


def supervised(terms: list[Term], model: Segmentor, size: tuple[int, int, int]) -> None:
    """Forward, assignment, losses, backward, update of prototypes."""
    image, label = _batch(size)
    learn_from(model(image), model.head, terms, label, model.stride)


def adaptation(model: Segmentor, size: tuple[int, int, int]) -> None:
    """PGPC as released, on DAFormer or HRDA: what runs of networks and losses; mixing and augmenting are left out.

    The student on source and mixed images, the teacher on target images, ImageNet's encoder on source images for the
    feature distance, and every pixel of a 65 x 65 map with every other one, of source and of mixed.
    """
    image, label = _batch(size)
    source = Seen(model(image), label, model.stride)
    with torch.no_grad():
        model.encoder_maps(image, model.encoder)
        model(image)
    everywhere = torch.ones(label.shape)
    mixed = Mixed(model(image), label, model.stride, pasted=everywhere > 0, weight=everywhere)
    step = Step(model, source, mixed)
    losses: list[Term] = [CrossEntropy(), *([DetailCrossEntropy()] if source.output.detail else [])]
    on_mixed = [term(Step(model, mixed)) for term in losses]
    torch.stack([term(step) for term in [*losses, PixelToPixelContrast()]] + on_mixed).sum().backward()


def _batch(size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    images, height, width = size
    return torch.empty(images, 3, height, width, dtype=torch.uint8), torch.zeros(images, height, width).long()


def daformer(variant: str, decoder_width: int) -> Segmentor:
    decoder = partial(DAFormerDecoder, width=decoder_width)
    return Segmentor(MiTEncoder(variant, pretrained=False), decoder, ParametricHead, CLASSES)


def hrda(variant: str, decoder_width: int, detail: int) -> Segmentor:
    decoder, attention = (partial(kind, width=decoder_width) for kind in (DAFormerDecoder, SegFormerDecoder))
    encoder = MiTEncoder(variant, pretrained=False)
    options: dict[str, Any] = {"detail_size": detail, "attention": attention}
    model = HRDASegmentor(encoder, decoder, ParametricHead, CLASSES, **options)
    model._random_box = lambda size: (0, 0, detail, detail)  # type: ignore[method-assign]
    return model


def settings(tiny: bool = False) -> dict[str, Setting]:
    """By name; ``tiny`` are sizes for a test."""
    size = (2, 64, 64) if tiny else (8, 512, 1024)
    crop, whole, detail = ((1, 64, 64), (1, 128, 128), 64) if tiny else ((2, 512, 512), (2, 1024, 1024), 512)
    width, variant, narrow = (18, "b0", 32) if tiny else (48, "b5", 256)
    prototypes: list[Term] = [CrossEntropy(), PixelPrototypeContrast(), PixelPrototypeDistance()]
    heads: dict[str, tuple[Any, list[Term]]] = {
        "softmax": (ParametricHead, [CrossEntropy()]),
        "prototypes": (partial(PrototypeHead, num_prototypes=10, logits="layernorm"), prototypes),
    }
    out = {}
    for half, precision in ((True, "bf16"), (False, "fp32")):
        for name, (head, terms) in heads.items():
            # SGD: reads weight, gradient and momentum, writes weight and momentum.
            made = partial(hrnet, head, width)
            out[f"HRNet-W48, {name}, {precision}"] = Setting(made, partial(supervised, terms), size, half, 20, 12)
    # AdamW reads four and writes three, the teacher reads two and writes one; alive are weight, gradient, two moments,
    # teacher and (nearly all of a network) ImageNet's encoder.
    out["PGPC on DAFormer, fp32"] = Setting(partial(daformer, variant, narrow), adaptation, crop, False, 40, 24)
    out["PGPC on HRDA, fp32"] = Setting(partial(hrda, variant, narrow, detail), adaptation, whole, False, 40, 24)
    return out


class Scaled(NamedTuple):
    """What is known of a setting on a number of GPUs."""

    counts: Counts
    parameters: int
    batch_norms: list[int]  # their channels


def count(setting: Setting, gpus: int = 1) -> Scaled:
    """Run a step of the setting on fake tensors, as one of so many processes."""
    model = setting.make().train()
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    norms = [m.num_features for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    sent: list[float] = []
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with warnings.catch_warnings(), fake, processes(gpus, sent):
        warnings.simplefilter("ignore")
        model = without_numbers(model, fake)
        counter = CountOperations()
        with counter, torch.autocast("cpu", torch.bfloat16) if setting.half else nullcontext():
            setting.step(model, setting.size)
    update = parameters * setting.state
    peak = counter.peak + parameters * (setting.kept - 4)  # gradients are alive at the peak, and counted, already
    seconds = counter.seconds + update / COPY
    counts = Counts(counter.flops, counter.bytes + update, seconds, peak, len(sent), sum(sent))
    return Scaled(counts, parameters, norms)


class Prediction(NamedTuple):
    """Of a number of GPUs with the same batch each."""

    seconds: float  # a step
    gradient_bytes: float  # that a GPU sends in a step
    norm_bytes: float
    waiting: float  # seconds of it that are waited for the wire


def predict(scaled: Scaled, factor: float, gpus: int, sync_norms: bool) -> Prediction:
    """The step of one GPU, ``factor`` times its bound, and what the wire adds."""
    alone = factor * scaled.counts.seconds
    if gpus == 1:
        return Prediction(alone, 0, 0, 0)
    ring = ring_times(gpus)
    gradients = ring * 4 * scaled.parameters
    # Forward: every process's mean, variance and count; backward: two sums a channel.
    norms = [(2 * c + 1) * 4 * (gpus - 1) + ring * 2 * c * 4 for c in scaled.batch_norms] if sync_norms else []
    small = 2 * len(norms) + scaled.counts.collectives
    exposed = max(0.0, gradients / WIRE[gpus] - BEHIND_BACKWARD * alone)
    rest = sum(norms) + scaled.counts.collective_bytes
    waiting = exposed + small * LATENCY[gpus] + rest / WIRE[gpus]
    return Prediction(alone + waiting, gradients, sum(norms), waiting)


MEASURED = {  # docs/speed.md, one H100: milliseconds and gigabytes
    "HRNet-W48, softmax, bf16": (143.6, 13.1),
    "HRNet-W48, prototypes, bf16": (171.3, 17.7),
    "HRNet-W48, softmax, fp32": (218.1, 24.7),
    "HRNet-W48, prototypes, fp32": (238.2, 27.9),
}


SCALED = ("HRNet-W48, prototypes, bf16", "PGPC on DAFormer, fp32", "PGPC on HRDA, fp32")


def factors(counted: dict[str, Scaled]) -> dict[str, float]:
    """Measured over bound of the softmax twin, by precision: what every prediction is multiplied by."""
    out = {}
    for precision in ("bf16", "fp32"):
        name = f"HRNet-W48, softmax, {precision}"
        out[precision] = MEASURED[name][0] / 1000 / counted[name].counts.seconds
    return out


def main() -> None:
    """Entry of ``python -m benchmarks.scale``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="tiny sizes")
    options = parser.parse_args()
    known = settings(options.dry)
    alone = {name: count(setting) for name, setting in known.items()}
    behind, console = factors(alone), Console(width=150)
    console.print(check_table(alone, behind))
    for name in SCALED:
        counted = {1: alone[name], **{gpus: count(known[name], gpus) for gpus in WIRE}}
        console.print(scale_table(name, counted, behind[name.split(", ")[-1]], known[name].size[0]))


def check_table(counted: dict[str, Scaled], behind: dict[str, float]) -> Table:
    """Predictions beside the measurements."""
    titles = [
        "one GPU",
        "TFLOP",
        "GB moved",
        "bound ms",
        "factor",
        "predicted ms",
        "measured",
        "predicted GB",
        "measured",
    ]
    table = Table(*titles, title="Check")
    for name, scaled in counted.items():
        factor = behind[name.split(", ")[-1]]
        counts, (ms, gigabytes) = scaled.counts, MEASURED.get(name, (None, None))
        cells = [
            f"{counts.flops / 1e12:.2f}",
            f"{counts.bytes / 1e9:.0f}",
            f"{1000 * counts.seconds:.1f}",
            f"{factor:.2f}",
        ]
        cells += [
            f"{1000 * factor * counts.seconds:.1f}",
            str(ms or "–"),
            f"{counts.peak / 1e9:.1f}",
            str(gigabytes or "–"),
        ]
        table.add_row(name, *cells)
    return table


def scale_table(name: str, counted: dict[int, Scaled], factor: float, batch: int) -> Table:
    """Predictions by number of GPUs, the same batch on each."""
    sent = ["MB sent: gradients", "SyncBN", "losses", "waits ms"]
    table = Table(
        "GPUs", "steps/s", "images/s", "efficiency", "GB", *sent, title=f"{name}, {batch} images on every GPU"
    )
    synced = name.startswith("HRNet")  # the adaptation recipes do not
    for gpus, scaled in counted.items():
        found = predict(scaled, factor, gpus, synced)
        share = factor * counted[1].counts.seconds / found.seconds
        cells = [f"{1 / found.seconds:.2f}", f"{gpus * batch / found.seconds:.1f}", f"{share:.2f}"]
        cells += [f"{scaled.counts.peak / 1e9:.1f}", f"{found.gradient_bytes / 1e6:.0f}"]
        cells += [f"{found.norm_bytes / 1e6:.1f}", f"{scaled.counts.collective_bytes / 1e6:.2f}"]
        table.add_row(str(gpus), *cells, f"{1000 * found.waiting:.1f}")
    return table


if __name__ == "__main__":
    main()
