"""The one room that opens trained models: from a checkpoint, whoever made it, to a network that can predict."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from protoseg.checkpoint import NETWORKS, checkpoint_label_space, read_checkpoint
from protoseg.data.channels import OPTIONS, ImageReader
from protoseg.evaluation.predictor import Predictor
from protoseg.functional.discriminant import Statistics
from protoseg.models.build import build_model
from protoseg.models.encoders import Encoder
from protoseg.models.segmentor import Segmentor
from protoseg.models.weights import mismatch, read_weights, weights_at_hand
from protoseg.nn import Discriminant
from protoseg.trusted import NETWORK, checked_sections
from protoseg.types import LabelSpace, ProtosegError, causes, check_choice, told

if TYPE_CHECKING:
    from protoseg.data import AdaptationDataModule, SegmentationDataModule

HASH = "frozen"
"""In ``checkpoint["protoseg"]``: of a frozen encoder's weights, which are not in it, but where the config says."""


@dataclass(frozen=True)
class TrainedFile:
    """A checkpoint that was read and looked through, of which nothing is built yet; made by :func:`open_file`."""

    path: Path
    content: dict[str, Any]
    trust: tuple[str, ...] = ()
    encoder: Encoder | None = None  # that of a network which its config cannot make

    @property
    def label_space(self) -> LabelSpace:
        """Its classes."""
        shown = ImageReader(**self.image_options("channels", "bands", "shown")).shown
        return replace(checkpoint_label_space(self.content), shown=tuple(shown))

    @property
    def networks(self) -> list[str]:
        """Those it holds: ``student`` (what supervised training makes, too) and perhaps ``teacher``."""
        return [name for name in NETWORKS if self._state(name)]

    def sections(self, *names: str) -> dict[str, Any]:
        """Sections of the config inside, which may be built; raises as :func:`protoseg.trusted.checked_sections`."""
        config = self.content["protoseg"]["config"]
        if not isinstance(config, dict):
            raise ProtosegError(f"checkpoint {self.path}: expected the run's config inside, got none; use train.py")
        return checked_sections(config, names, self.trust)

    def model(self, network: str = "student") -> Segmentor:
        """A network with its weights and prototypes, in eval mode, on the CPU; the caller's random numbers stay.

        It is built without memory first: a config that declares another network than the weights are of, or a
        larger one, costs nothing. Raises ProtosegError: no such network; a config that is not allowed, or does not fit.
        """
        check_choice("network", network, NETWORKS)
        state = self._state(network)
        if not state:
            raise ProtosegError(f"network: expected a file with a {network}, got one without; use network=student")
        classes = self.label_space.num_classes
        if listed := mismatch(state, self.blank(classes, state).state_dict()):
            raise ProtosegError(f"checkpoint {self.path}: the weights do not fit its config: {listed}")
        with _refused(self.path, "network"), torch.random.fork_rng(devices=[]), _no_more_than(state):
            model = self._build(classes)
            model.load_state_dict(state)
            model.arrange(self.label_space.parents)
            if (known := self.statistics(network)) is not None:
                channels = [model.head.embedding_dim, *model.encoder.channels]
                model.discriminant = Discriminant(known, channels, model.feature_strides, model.stride)
        return model.eval()

    def statistics(self, network: str = "student") -> Statistics | None:
        """What ``protoseg teach statistics`` found in its maps, if it did; ProtosegError: parts that do not fit."""
        if (kept := self.content["protoseg"].get("statistics")) is None:
            return None
        with _refused(self.path, "statistics"):
            return Statistics(**kept[network]).checked(self.label_space.num_classes)

    def blank(self, num_classes: int, state: Mapping[str, Tensor] | None = None) -> Segmentor:
        """The network that the config declares, for so many classes, on torch's ``meta`` device: without numbers.

        Raises ProtosegError: a config that is not allowed, cannot be built, or declares far more than ``state``, which
        is the student's unless given.
        """
        with _refused(self.path, "network"), torch.device("meta"), _no_more_than(state or self._state("student")):
            return self._build(num_classes)

    def datamodule(
        self, root: str | None = None, change: Callable[[Any], Any] | None = None, **changes: Any
    ) -> "SegmentationDataModule | AdaptationDataModule":
        """The data it was trained on; raises ProtosegError for a section that is not allowed or cannot be built.

        ``root`` is their folder (of adaptation, the target's) where it is not where the run found it; ``change`` and
        ``changes`` are of the section ``data`` before it is built, and values of it.
        """
        data = self.sections("data")["data"]
        if data is None:
            raise ProtosegError(f"checkpoint {self.path}: expected the data of its training, got none; give data=NAME")
        data = copy.deepcopy(data)
        with _refused(self.path, "data"):
            if root is not None:
                data = data | {"target": moved(data["target"], root)} if "target" in data else moved(data, root)
            data = data if change is None else change(data)
            return instantiate(OmegaConf.create(data | changes))

    @property
    def reader(self) -> ImageReader:
        """How images were read in training (of adaptation, the target's); raises as :meth:`image_options`."""
        return ImageReader(**self.image_options(*OPTIONS))

    def image_options(self, *keys: str) -> dict[str, Any]:
        """Settings of the data set that say how images are read; ProtosegError: parts were read in several ways."""

        def part(of: Any, key: str) -> Any:  # plain values: nothing of the section is built
            return of.get(key) if isinstance(of, dict) else None

        data = part(self.content["protoseg"]["config"], "data")
        judged = part(data, "target") or data
        parts = part(judged, "parts") or {"": judged}
        found = {key: [part(part(parts[name], "dataset"), key) for name in parts] for key in keys}
        for key, values in found.items():
            found[key] = values = [value for value in values if value is not None]
            if any(value != values[0] for value in values):
                raise ProtosegError(f"checkpoint {self.path}: expected one {key} in data.parts, got {values}")
        return {key: values[0] if values else None for key, values in found.items()}

    def predictor(self) -> Predictor:
        """How it looks at images, as it was trained."""
        section = self.sections("inference")["inference"]
        with _refused(self.path, "inference"):
            return Predictor() if section is None else instantiate(OmegaConf.create(section))

    def whole(self) -> "TrainedFile":
        """Itself, with weights that :func:`without` left out; raises ProtosegError: not on this machine, or others."""
        state, own = dict(self.content["state_dict"]), dict(self.content["protoseg"])
        if (known := own.pop(HASH, None)) is None:
            return self
        section = self.sections("encoder")["encoder"] or {}
        with _refused(self.path, "encoder"), torch.random.fork_rng(devices=[]):
            file = weights_at_hand(section, self.path.parent)
            with _no_more_than(read_weights(file)):
                encoder = instantiate(OmegaConf.create(section | {"weights": str(file)}), _convert_="all")
            if digest(frozen := unmoved(encoder)) != known:
                raise ProtosegError(f"expected the weights of its frozen encoder, got others in {file} (SHA-256)")
        for prefix in {prefix for prefix in NETWORKS.values() for name in state if name.startswith(prefix)}:
            state |= {prefix + name: tensor for name, tensor in frozen.items()}
        return replace(self, content=self.content | {"state_dict": state, "protoseg": own})

    def _build(self, num_classes: int) -> Segmentor:
        config = OmegaConf.create(self.sections(*NETWORK))
        return build_model(config, num_classes, pretrained=False, encoder=copy.deepcopy(self.encoder))

    def _state(self, network: str) -> dict[str, Tensor]:
        prefix, state = NETWORKS[network], self.content["state_dict"]
        return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def open_file(path: str | Path, trust: Sequence[str] = ()) -> TrainedFile:
    """Read a checkpoint; nothing of it is run. Raises as ``read_checkpoint`` and :meth:`TrainedFile.whole`.

    ``trust`` names modules whose classes it may build besides those of :data:`protoseg.trusted.SLOTS`, e.g.
    ``["mypackage.heads"]``: your own, or such as you have read.
    """
    return TrainedFile(Path(path), read_checkpoint(path), (trust,) if isinstance(trust, str) else tuple(trust)).whole()


def moved(part: dict[str, Any], root: str) -> dict[str, Any]:
    """Settings of a data set whose folder is ``root`` now, as is that of its file of classes, if it lay there."""
    of = part.get("dataset") or {}
    classes, before = Path(str(of.get("classes"))), Path(str(part.get("root")))
    if classes.suffix and classes.parent == before:  # no table's name
        part = part | {"dataset": of | {"classes": f"{root}/{classes.name}"}}
    return part | {"root": root}


def _refused(path: Path, what: str) -> AbstractContextManager[None]:
    """Tell whatever a stranger's values make a constructor raise as one sentence."""

    def refusal(error: Exception) -> str:
        cause = next((cause for cause in causes(error) if isinstance(cause, ProtosegError)), error)
        why = " ".join(str(cause).split()) or type(error).__name__
        return why if why.startswith("checkpoint ") else f"checkpoint {path}: its {what} cannot be built: {why[:500]}"

    return told(refusal, Exception, ProtosegError)  # the values are arbitrary, and so is what they lead to


@contextmanager
def _no_more_than(state: Mapping[str, Tensor]) -> Iterator[None]:
    """Stop a construction that makes far more modules, tensors or numbers than the weights are of."""
    # With room for what construction makes and drops: classifiers of encoders, buffers that are no state.
    pieces, numbers = 40 * len(state) + 10_000, 4 * sum(tensor.numel() for tensor in state.values()) + 50_000_000

    def look(owner: nn.Module, name: str, made: Any) -> None:
        nonlocal pieces, numbers
        pieces -= 1
        numbers -= made.numel() if isinstance(made, Tensor) else 0
        if pieces < 0 or numbers < 0:
            raise ProtosegError("its config declares a network far larger than its weights")

    with (
        hooks.register_module_parameter_registration_hook(look),
        hooks.register_module_buffer_registration_hook(look),
        hooks.register_module_module_registration_hook(look),
    ):  # each handle takes its hook away again
        yield


def unmoved(encoder: Encoder) -> dict[str, Tensor]:
    """What no training step moves: weights that do not learn, of ``freeze`` the buffers too, by names in a network."""
    moving = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    moving |= set() if encoder.frozen else {name for name, _ in encoder.named_buffers()}
    return {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items() if name not in moving}


def digest(state: Mapping[str, Tensor], *more: Tensor) -> str:
    """SHA-256 of named tensors, and then of tensors without a name, in hexadecimal."""
    found = hashlib.sha256()
    for name, tensor in [*sorted(state.items()), *(("", tensor) for tensor in more)]:
        numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found.update(name.encode(errors="backslashreplace") + numbers.tobytes())
    return found.hexdigest()


def without(checkpoint: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A checkpoint less the tensors of these names in each of its networks, and with their hash."""
    if not names:
        return checkpoint
    state, left_out = checkpoint["state_dict"], {prefix + name for prefix in NETWORKS.values() for name in names}
    own = {HASH: digest({name: state[NETWORKS["student"] + name] for name in names})}
    kept = {name: tensor for name, tensor in state.items() if name not in left_out}
    return checkpoint | {"state_dict": kept, "protoseg": checkpoint["protoseg"] | own}
