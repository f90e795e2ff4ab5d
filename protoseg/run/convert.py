"""Other formats: a published file becomes one of our checkpoints, and gives the published labels; one of ours ONNX."""

import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from math import prod
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import open_dict
from torch import Tensor

from protoseg.api import load
from protoseg.archive import Unread, read_foreign
from protoseg.checkpoint import NETWORKS, own_part, save_checkpoint
from protoseg.export.onnx import compare_onnx, export_onnx, multiple_of
from protoseg.files import write_file
from protoseg.models.build import build_model
from protoseg.models.published import KINDS, Kind
from protoseg.models.weights import State, mismatch, unwrapped
from protoseg.run.build import plain
from protoseg.run.config import composed
from protoseg.text import Terminal, override, program
from protoseg.types import LabelSpace, ProtosegError, Size, check_choice, require, told

_TEACHER, _FROZEN = "ema_model.", "imnet_model."
TOLERANCE = 1e-3  # of logits around 10, and share of labels: another order of sums, not another network
_PREFIXES = ("module.", "model.")  # of DistributedDataParallel, and of the student or of a whole Lightning module


def convert(file: str | Path, out: str | Path, network: str = "student", overrides: Sequence[str] = ()) -> Kind | None:
    """Write a file of published weights as a checkpoint that everything here opens; nothing of the file is run.

    Its kind is recognised by its names, see :data:`protoseg.models.published.KINDS`, and returned; None of encoder
    weights that timm knows, for ``encoder=NAME``. ImageNet weights of an encoder become a file for
    ``encoder.weights=``. ``network`` is of a file with several, ``student`` or ``teacher``; ``overrides`` change the
    settings that go with the kind: ``data=cityscapes_to_acdc``. Raises ProtosegError: a file that is damaged, holds
    code, or is of no known kind; that lacks the network; or whose names or classes do not fit.
    """
    file, out = Path(file), Path(out)
    check_choice("network", network, NETWORKS)
    if not file.is_file():
        raise ProtosegError(f"convert: expected a file of published weights, got none at {file}")
    if out.exists() and out.samefile(file):
        raise ProtosegError(f"convert: expected another file to write than the one to read, got {out} twice")
    state, classes = _read(file, network)
    kind = next((kind for kind in KINDS if kind.mark in state), None)
    if kind is None:
        if not any(override.startswith("encoder=") for override in overrides):
            kinds, names = "; ".join(kind.name for kind in KINDS), ", ".join(name[:80] for name in list(state)[:3])
            more = "ImageNet weights of a timm encoder need encoder=NAME, other kinds a table in models/published.yaml"
            raise ProtosegError(f"convert: expected one of {kinds}, got {file} with the names {names}, …; {more}")
        _write_encoder(state, overrides, file, out)
        return None
    where = f"convert: {file}, {kind.name}"
    lacking = (KeyError, IndexError, RuntimeError, TypeError, ValueError)  # of tensors that the kind must have
    with told(lambda error: f"{where}: expected all of that network, got a part or another form ({error})", *lacking):
        renamed, left = kind.renamed(state)
        settings = kind.settings(renamed)
    settings = [*settings, *overrides]
    if kind.encoder_only:
        encoder = {name.removeprefix("encoder.model."): tensor for name, tensor in renamed.items()}
        _write_encoder(encoder, settings, file, out)
        return kind
    cfg = composed("train", ["paths.output=.", *settings])
    space: LabelSpace = instantiate(cfg.data).label_space
    _check_classes(renamed, classes, space, where)
    with torch.device("meta"):
        model = build_model(cfg, space.num_classes, pretrained=False)
    fitted = _fitted(renamed, model.state_dict(), left, where)
    with open_dict(cfg.encoder):  # said, so that no later default can normalise otherwise
        cfg.encoder.mean, cfg.encoder.std = list(model.encoder.mean), list(model.encoder.std)
    weights = {NETWORKS["student"] + name: tensor for name, tensor in fitted.items()}
    save_checkpoint({"state_dict": weights, "protoseg": own_part(plain(cfg), space)}, out)
    return kind


def _read(file: Path, network: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one network, without the prefixes that training codes put before all names; the classes' names."""
    with read_foreign(file) as (values, tensor):
        if isinstance(values, dict) and "protoseg" in values:
            raise ProtosegError(f"convert: {file} is a checkpoint of protoseg already; use it: ckpt_path={file}")
        classes = _said_classes(values)
        values = unwrapped(values)
        named = {k: v for k, v in values.items() if isinstance(v, Unread)} if isinstance(values, dict) else {}
        if not named:
            raise ProtosegError(f"convert: expected named tensors, alone or under state_dict, got none in {file}")
        named = _network(named, network, file)
        if sum(prod(u.shape) * u.storage.dtype.itemsize for u in named.values()) > 2 * file.stat().st_size:
            raise ProtosegError(f"convert: expected no more numbers than {file} holds, got tensors that share them")
        state = {name: tensor(unread) for name, unread in named.items()}
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise ProtosegError(f"convert: expected finite numbers, got NaN or infinity in {name} of {file}")
    return state, classes


def _said_classes(values: Any) -> list[str]:
    """Names that mmcv, or mmengine, has left in a file."""
    meta = values.get("meta") if isinstance(values, dict) else None
    said = (meta.get("dataset_meta") or meta) if isinstance(meta, dict) else {}
    names = (said.get("CLASSES") or said.get("classes")) if isinstance(said, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, (list, tuple)) else []


def _network(named: Mapping[str, Any], network: str, file: Path) -> dict[str, Any]:
    if network == "teacher":
        found = {name.removeprefix(_TEACHER): v for name, v in named.items() if name.startswith(_TEACHER)}
        what, other = f"teacher (names {_TEACHER}…)", "student"
    else:
        found = {name: v for name, v in named.items() if not name.startswith((_TEACHER, _FROZEN))}
        what, other = "student", "teacher"
    if not found:
        raise ProtosegError(f"convert: expected a file with a {what}, got one without: {file}; use network={other}")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in found)), None):
        found = {name.removeprefix(prefix): v for name, v in found.items()}
    return found


def _check_classes(state: Mapping[str, Tensor], said: Sequence[str], space: LabelSpace, where: str) -> None:
    """See that the file is of the data's classes: by their number, and by their names where it says them."""
    numbers = [len(state[name]) for name in ("head.classifier.weight", "head.memory.prototypes") if name in state]
    got = next((str(number) for number in numbers if number != space.num_classes), None)
    if said and got is None:
        pairs = zip_longest(said, space.classes, fillvalue="none")
        got = next((f"{a[:80]!r} in place of {b!r}" for a, b in pairs if _letters(a) != _letters(b)), None)
    if got is not None:
        wanted = f"{where}: expected the {space.num_classes} classes of {space.name}"
        raise ProtosegError(f"{wanted}, got {got}; choose the data of its training: data=NAME (own: data=folder)")


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _fitted(state: State, wanted: State, left: Sequence[str], where: str) -> State:
    """The tensors in the shapes of the model's; a 1 x 1 convolution and a linear layer are the same numbers."""
    # Files older than PyTorch 0.4.1 lack the counters of batches.
    fitted = {name: torch.tensor(0) for name in wanted if name.endswith("num_batches_tracked")}
    for name, tensor in state.items():
        like = wanted.get(name, tensor)
        plain, wished = (x.shape[:2] if x.shape[2:] == (1, 1) else x.shape for x in (tensor, like))
        fitted[name[:120]] = tensor.reshape(like.shape).to(like.dtype) if plain == wished else tensor
    if listed := mismatch({name[:120]: torch.empty(0) for name in left} | fitted, wanted):
        text = f"{where}: the names do not fit. {listed}. Is it another network?"
        raise ProtosegError(f"{text} Settings are changed with KEY=VALUE, e.g. encoder=mit_b3")
    return fitted


def _write_encoder(state: dict[str, Tensor], settings: Sequence[str], file: Path, out: Path) -> None:
    """Write a file for ``encoder.weights=``, if the encoder of the settings loads it."""
    encoder = composed("train", settings).encoder

    def save(partial: Path) -> None:
        torch.save(state, partial)
        with told(lambda error: str(error.__cause__).replace(str(partial), str(file)), InstantiationException):
            instantiate(encoder, weights=str(partial))

    write_file(out, save)


def run_convert(file: Path, out: Path, network: str, overrides: Sequence[str]) -> None:
    """Convert, and say what came out and what may be done with it; raises as :func:`convert`."""
    terminal, started = Terminal(), time.perf_counter()
    with terminal.status("converting"):
        kind = convert(file, out, network, overrides)
    whole = kind is not None and not kind.encoder_only
    what = f"{kind.name}{f', {network}' if whole else ''}" if kind else "weights of an encoder"
    terminal.say(f"{out}: {what}, {out.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - started:.1f} s")
    use = ("evaluate", override("ckpt_path", out)) if whole else ("train", override("encoder.weights", out))
    terminal.say(program(*use))


def export(checkpoint: str, out: Path, size: Size | None, network: str, trust: Sequence[str]) -> None:
    """Export, compare, and say what came out; raises as ``export_onnx``, or where the file computes something else."""
    require("onnx", "onnx", "onnxscript", "onnxruntime")  # before the minutes that the rest takes
    terminal = Terminal()
    trained = load(checkpoint, device="cpu", network=network, trust=trust)
    ranges = trained.reader.ranges if trained.reader and trained.reader.channels else ()
    started = time.perf_counter()
    with terminal.status("exporting (half a minute to some minutes)"):
        path = export_onnx(trained.network, trained.label_space, out, size, ranges)
    multiple = multiple_of(path)
    several = [(128, 192), (240, 320), (241, 319)] if multiple == 1 else [(4 * multiple, 6 * multiple)]
    difference = compare_onnx(trained.network, path, [size] if size else several, scaled=bool(ranges))
    logits, labels = f"{difference.logits:.1e}", f"{difference.labels:.4%}"
    seen = f"logits differ from torch's by at most {logits}, {labels} of the labels differ"
    # Of a taught class it is a log-likelihood of many maps, in which torch differs from itself by 5e-3.
    most = 100 * TOLERANCE if (known := trained.network.discriminant) is not None and known.taught else TOLERANCE
    if difference.logits > most or difference.labels > TOLERANCE:
        raise ProtosegError(
            f"export: {path} was written, but its {seen}; expected at most {most:g} and {TOLERANCE:.1%}: do not use it"
        )
    free = "" if size else "any size; " if multiple == 1 else f"height and width multiples of {multiple}; "
    terminal.say(f"{path}, {path.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - started:.0f} s; {free}{seen}")
