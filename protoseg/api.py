"""A trained model in three lines of Python::

import protoseg
model = protoseg.load("RUN/checkpoints/best.ckpt")  # or a folder, or hf://user/name on the Hugging Face hub
prediction = model.predict("photo.jpg")  # .labels, .confidence, .overlay(), .save("labels.png")
"""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from protoseg.checkpoint import own_part, save_checkpoint
from protoseg.data.channels import ImageReader
from protoseg.data.class_file import own_space
from protoseg.data.own import ImageFolder
from protoseg.evaluation.pictures import Picture, label_png, overlay
from protoseg.evaluation.predictor import Predictor, choose_device
from protoseg.files import write_file, write_text
from protoseg.models.own import NetworkEncoder
from protoseg.models.segmentor import Segmentor
from protoseg.models.stranger import look_inside
from protoseg.text import markdown_text, visible
from protoseg.trained import TrainedFile, moved, open_file
from protoseg.trusted import SLOTS
from protoseg.types import LabelSpace, Names, ProtosegError, StrPath, first_line, told

WEIGHTS = "model.ckpt"  # the file of a saved model, in a folder or on the hub
_IN_FOLDER = (WEIGHTS, "checkpoints/best.ckpt", "checkpoints/last.ckpt", "best.ckpt", "last.ckpt")
_AS_IT_IS: dict[str, Any] = {"num_convs": 0, "dropout": 0.0}
HUB = "hf://"  # what the name of a model on the Hugging Face hub begins with: any other is a place on this machine
Source = str | Path | Image.Image | npt.NDArray[Any] | Tensor


@dataclass(frozen=True, repr=False)
class Prediction:
    """What a model says of an image."""

    labels: npt.NDArray[np.uint8 | np.uint16]  # class ids, ``h w``; uint16 of more than 255 classes
    confidence: npt.NDArray[np.float32]  # probability of that class, ``h w``
    unknown: npt.NDArray[np.float32]  # how unlike all classes, ``h w``: 0 to 2 by prototypes; else of no fixed range
    image: Tensor  # uint8 (or float in [0, 1]) RGB, ``3 h w``, or the model's other channels
    label_space: LabelSpace  # classes and colours
    probabilities: npt.NDArray[np.float32] | None = None  # of all classes, ``c h w``, where they were asked for

    def __repr__(self) -> str:
        ids, counts = np.unique(self.labels, return_counts=True)
        order = (-counts).argsort(kind="stable")[:6]
        shares = [f"{visible(self.classes[ids[i]])} {counts[i] / self.labels.size:.1%}" for i in order]
        (height, width), mean, more = self.labels.shape, self.confidence.mean(), ", …" * (len(ids) > 6)
        return f"Prediction: {width} x {height}, mean confidence {mean:.2f}\n{', '.join(shares)}{more}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names; the position is the id."""
        return self.label_space.classes

    def mask(self, name: str) -> npt.NDArray[np.bool_]:
        """Pixels of one class, bool ``h w``; raises ProtosegError for a name that is no class."""
        return np.asarray(self.labels == self.label_space.ids([name], "mask")[0])

    def overlay(self, alpha: float = 0.55) -> Picture:
        """The classes' colours over the image, uint8 ``h w 3``."""
        return overlay(self.image, self._tensor(), self.label_space, alpha)

    def save(self, path: StrPath) -> None:
        """Write a PNG of class ids that viewers show in the classes' colours; raises as ``write_file``."""
        write_file(Path(path), lambda partial: label_png(self._tensor(), self.label_space, partial))

    def _tensor(self) -> Tensor:
        return torch.from_numpy(self.labels.astype(np.int64))


@dataclass(eq=False, repr=False)
class Model:
    """A network in eval mode, its classes, its device and how it looks at an image; made by :func:`load`.

    Set another ``predictor``, which is not saved, to change how images are seen: ``Predictor("slide", crop_size=512)``.
    """

    network: Segmentor
    label_space: LabelSpace
    predictor: Predictor
    device: torch.device
    origin: dict[str, Any]  # what its checkpoint says of it
    reader: ImageReader | None = None
    trust: tuple[str, ...] = ()  # see :func:`load`

    @property
    def classes(self) -> tuple[str, ...]:
        """Names; the position is the id."""
        return self.label_space.classes

    def __repr__(self) -> str:
        names = ", ".join(map(visible, self.classes[:6])) + ", …" * (len(self.classes) > 6)
        return f"Model: {self._parts()}, on {self.device}\n{len(self.classes)} classes: {names}"

    def _parts(self) -> str:
        encoder, decoder, head = self.network.encoder, self.network.decoder, self.network.head
        parts = [encoder.network, head] if isinstance(encoder, NetworkEncoder) else [encoder, decoder, head]
        return " + ".join(type(part).__name__ for part in parts)

    def to(self, device: str | torch.device) -> "Model":
        """Move it, and return it; raises ProtosegError where there is no such device."""
        self.device = choose_device(str(device))
        self.network.to(self.device)
        return self

    def predict(self, image: Source | Sequence[Source], probabilities: bool = False) -> Any:
        """Segment an image of any size: a :class:`Prediction`; or several, one after the other: a list of them.

        One is a path, a PIL image, an RGB array ``h w 3`` or a tensor ``3 h w``, uint8 or float in [0, 1]; where it has
        other channels a path, an array ``h w c`` of numbers as in its files, or a tensor ``c h w`` in [0, 1]. Several
        are a list, a folder's path (its images, by name), or an array or a tensor with ``b`` before these.
        ``probabilities`` keeps those of all classes. Raises ProtosegError: anything else, or a file not to be read.
        """
        if isinstance(image, (str, Path)) and os.path.isdir(image):
            image = [path for path, _ in ImageFolder(image, self.label_space, reader=self.reader).samples]
        if isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4:
            return [self.predict(one, probabilities) for one in image]  # type: ignore[arg-type, union-attr]
        pixels = as_tensor(image, self.reader)  # type: ignore[arg-type]
        batch, size = pixels[None].to(self.device), torch.tensor([pixels.shape[1:]])
        (found,) = self.predictor.doubt(self.network, batch, size, probabilities)
        kind: Any = np.uint8 if self.label_space.num_classes <= 255 else np.uint16
        labels, confidence = found.label.cpu().numpy().astype(kind), found.confidence.float().cpu().numpy()
        scores = None if found.probabilities is None else found.probabilities.float().cpu().numpy()
        unknown = found.unknown.float().cpu().numpy()
        return Prediction(labels, confidence, unknown, pixels.cpu(), self.label_space, scores)

    @property
    def file(self) -> TrainedFile:
        """The checkpoint that it would be saved as, for :mod:`protoseg.teach`; :meth:`of_file` is the way back."""
        config = {name: self.origin["config"].get(name) for name in SLOTS}  # what a saved model still needs
        own = self.origin | {"config": _without_places(config)}
        if self.network.discriminant is not None:  # of the network that is written, which is a student from now on
            own["statistics"] = {"student": self.network.discriminant.known._asdict()}
        state = {f"model.{name}": tensor.cpu() for name, tensor in self.network.state_dict().items()}
        encoder = self.network.encoder if config["encoder"] is None else None
        return TrainedFile(Path(WEIGHTS), {"state_dict": state, "protoseg": own}, self.trust, encoder)

    @classmethod
    def of_file(cls, file: TrainedFile, device: str | None = None, network: str = "student") -> "Model":
        """What :func:`load` makes of a checkpoint, with its arguments and errors."""
        model, where, own = file.model(network), choose_device(device), file.content["protoseg"]
        return cls(model.to(where), file.label_space, file.predictor(), where, own, file.reader, file.trust)

    def save_pretrained(self, folder: StrPath) -> Path:
        """Write the model, without what only training needs, and a card; returns the weights, ``folder/model.ckpt``.

        Folders of the machine it was trained on do not travel with it. Raises ProtosegError if the disk refuses.
        """
        path, file = Path(folder) / WEIGHTS, self.file
        if file.encoder is not None:
            raise ProtosegError("save_pretrained: expected a network made with Model.from_network(…, arguments={…})")
        save_checkpoint(file.content, path)
        card = path.with_name("README.md")
        if not card.exists():  # one may have been written by hand
            space, template = self.label_space, Path(__file__).with_name("card.md").read_text("utf-8")
            name, classes = markdown_text(space.name), ", ".join(map(markdown_text, space.classes))
            text = template.format(name=name, parts=self._parts(), number=space.num_classes, classes=classes)
            write_text(card, text)
        return path

    @classmethod
    def from_network(
        cls,
        network: nn.Module | str | Path,
        classes: Sequence[str | None],
        arguments: Mapping[str, Any] | None = None,
        palette: Mapping[str, tuple[int, int, int]] | None = None,
        features: Sequence[str] | None = None,
        **seen: Any,
    ) -> "Model":
        """A network of one's own, of another library, or in an ONNX file; ``protoseg.wrap`` is the same.

        Its copy answers as it does, is evaluated, saved, loaded, taught: ``model.file`` goes into the functions of
        :mod:`protoseg.teach`, what these make into :meth:`of_file`.

        Args:
            network: gives for images ``b 3 h w`` logits ``b c h/s w/s``: a tensor, an object's ``.logits``, a
                dictionary's ``out``, or last in a list of maps; or an ONNX file that does, which is saved with it.
            classes: of each channel; channels of one name are one class, None is no class.
            arguments: what its class makes it of, plain values by name, so that ``load(…, trust=[MODULE])`` can make it
                again; without them a network of torch is not saved.
            palette: colours by class, 0 to 255, in the order that classes are to have; else they are made.
            features: names of submodules, or of an ONNX file's tensors, whose maps are looked at in teaching; else the
                maps that it gives, or at each stride the widest inside, the last of these.
            seen: mean, std, multiple, and stride where a trial cannot find it, of
                :class:`protoseg.models.own.NetworkEncoder`.

        Raises ProtosegError: arguments that make another network; names, colours, maps or a file of another form.
        """
        space = own_space(palette or [*dict.fromkeys(name for name in classes if name is not None)])
        of = [-1 if name is None else space.ids([name], "classes")[0] for name in classes]
        encoder, file = look_inside(network, len(of), features, **seen)
        arguments = file or arguments
        config = {
            "encoder": None if arguments is None else encoder.config(arguments),
            "decoder": {"_target_": "protoseg.models.decoders.FCNDecoder", "_partial_": True, **_AS_IT_IS},
            "head": {"_target_": "protoseg.nn.LogitsHead", "channel_class": of},
        }
        state = {f"model.encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
        content = {"state_dict": state, "protoseg": own_part(config, space)}
        trust = (type(encoder.network).__module__,)  # the network is the caller's
        return cls.of_file(TrainedFile(Path(WEIGHTS), content, trust, encoder if arguments is None else None))

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Upload the model to ``user/name`` on the Hugging Face hub, made if it is not there; returns its address.

        Without a token, that of ``hf auth login`` counts. Raises ProtosegError if the hub is out of reach, or refuses.
        """
        from huggingface_hub import HfApi

        repo_id = repo_id.removeprefix(HUB)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            remedy = "log in with `hf auth login`, or save_pretrained(FOLDER), to upload later"
            with _from_hub(f"push_to_hub: {repo_id} was refused or is out of reach", remedy):
                api = HfApi(token=token)
                api.create_repo(repo_id, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="protoseg model"))


def load(
    source: StrPath, device: str | None = None, network: str = "student", revision: str | None = None, trust: Names = ()
) -> Model:
    """A trained model, ready to predict.

    Args:
        source: a checkpoint; a folder that ``train.py`` or ``save_pretrained`` wrote; or ``hf://user/name`` on the
            Hugging Face hub. Nothing in it is run: it holds tensors and plain values, and may build the classes of
            :data:`protoseg.trusted.SLOTS`.
        device: a GPU where there is one, unless said.
        network: ``student`` (what supervised training makes, too) or, of domain adaptation, ``teacher``.
        revision: of a model on the hub: branch, tag or commit.
        trust: modules whose classes it may build besides, e.g. ``["mypackage.heads"]``. They are imported: name your
            own, or such as you have read.

    Raises ProtosegError: no such file, folder or model; a hub out of reach; a checkpoint that is bad or not ours.
    """
    return Model.of_file(open_file(_find(source, revision), trust), device, network)


wrap = Model.from_network


def as_tensor(image: Source, reader: ImageReader | None = None) -> Tensor:
    """RGB ``3 h w`` (or the reader's channels), uint8 or float in [0, 1]; as of :meth:`Model.predict`."""
    given: Any = image
    channels = (reader and reader.channels) or 3
    if isinstance(image, (str, Path)):
        given = (reader or ImageReader()).read(Path(image))
    elif isinstance(image, Image.Image) and image.mode[:1] not in "IF":  # of more than 8 bits, which PIL cuts off
        given = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    elif isinstance(given, np.ndarray) and given.ndim == 3 and reader and given.shape[2] == reader.channels:
        given = reader.scaled(given, "predict")
    if isinstance(given, np.ndarray) and given.ndim == 3 and given.shape[2] == channels:
        given = torch.from_numpy(np.ascontiguousarray(given.transpose(2, 0, 1)))
    good = isinstance(given, Tensor) and given.ndim == 3 and given.shape[0] == channels and given.numel() > 0
    if good and given.dtype != torch.uint8:  # resized floats may be a little beyond; NaN is nowhere
        good = given.is_floating_point() and bool(-0.5 < given.min() <= given.max() < 1.5)
    if not good:
        kind = getattr(image, "dtype", getattr(image, "mode", "?"))
        got = f"{type(image).__name__} of {kind}, {tuple(getattr(image, 'shape', ()))}"
        wanted = f"the path of an image, PIL image of 8 bits, array h w {channels} or tensor {channels} h w"
        raise ProtosegError(f"predict: expected {wanted}, of uint8 or of float in [0, 1], got {got}")
    return given


def _find(source: StrPath, revision: str | None) -> Path:
    """The file of a model that ``load`` was given."""
    place, name = Path(source), str(source)
    if os.path.isdir(place):
        found = next((place / name for name in _IN_FOLDER if (place / name).is_file()), None)
        if found is None:
            raise ProtosegError(f"load: expected {', '.join(_IN_FOLDER)} in {place.absolute()}, got none of them")
        return found
    if not name.startswith(HUB):
        if place.suffix != ".ckpt" and not os.path.exists(place):
            hint = f"; a model on the Hugging Face hub is {HUB}{name}" if name.count("/") == 1 else ""
            raise ProtosegError(f"load: expected a checkpoint or a folder, got {place.absolute()}: no such file{hint}")
        return place  # `read_checkpoint` says what is wrong with it
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name.removeprefix(HUB)):
        raise ProtosegError(f"load: expected {HUB}user/name, got {name!r}")
    from huggingface_hub import hf_hub_download

    remedy = "check the name and the connection, or give a checkpoint or a folder"
    with _from_hub(f"load: {name!r} cannot be had from the Hugging Face hub", remedy):
        return Path(hf_hub_download(name.removeprefix(HUB), WEIGHTS, revision=revision))


def _from_hub(failed: str, remedy: str) -> AbstractContextManager[None]:
    """The hub's client raises whatever its layers raise."""
    return told(lambda error: f"{failed} ({type(error).__name__}: {first_line(error)}): {remedy}", Exception)


def _without_places(node: Any) -> Any:
    """A config without folders of the machine: data is looked for in ``data/``, as documented."""
    if isinstance(node, list):
        return [_without_places(value) for value in node]
    if not isinstance(node, dict):
        return os.path.basename(node) if isinstance(node, str) and os.path.isabs(node) else node
    node = moved(node, f"data/{Path(str(node['root'])).name}") if node.get("root") else node
    kept = ("network", "relabel")  # arguments of a class of one's own; names
    plain = {key: value if key in kept else _without_places(value) for key, value in node.items()}
    return plain | ({"weights": None} if "weights" in plain else {})
