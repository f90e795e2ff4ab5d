"""A stranger's network: an ONNX file as a module, and the maps inside a network that are worth a look."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.models.own import NetworkEncoder, inside
from protoseg.types import ProtosegError, first_line, require, told

BLOCK = 2**16  # bytes of a file are counted in blocks: no number in a checkpoint's config is larger
TRIAL = (256, 320)  # pixels of the image that a network is tried with, unless its file is for another size


class OnnxNetwork(nn.Module):
    """An ONNX file, run image by image by onnxruntime on the CPU. Its bytes are a buffer: a checkpoint holds the file.

    ``length`` is that of the file, ``divmod(bytes, BLOCK)``, ``outputs`` are the tensors of its graph that it gives.
    Images of another size than that of a file for one size are resized to it, and its maps back.
    """

    def __init__(self, length: Sequence[int], outputs: Sequence[str]) -> None:
        super().__init__()
        self.outputs, self.session = list(outputs), cast(Any, None)
        self.file = nn.Buffer(torch.zeros(length[0] * BLOCK + length[1], dtype=torch.uint8))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised images ``b 3 h w`` to the maps; raises as :func:`onnx_session`."""
        self.session = self.session or onnx_session(self.file.cpu().numpy().tobytes(), self.outputs)
        name, rows, columns = _input(self.session, image.shape[2:])
        seen = F.interpolate(image.float(), (rows, columns), mode="bilinear", antialias=True)  # of one size: the same
        runs = [self.session.run(self.outputs, {name: one.cpu().numpy()}) for one in seen.split(1)]
        maps = [torch.from_numpy(np.concatenate(parts)).to(image.device) for parts in zip(*runs, strict=True)]
        scales = [(x.shape[2] * image.shape[2] // rows, x.shape[3] * image.shape[3] // columns) for x in maps]
        return [F.interpolate(x, size, mode="bilinear") for x, size in zip(maps, scales, strict=True)]


def onnx_session(file: bytes, outputs: Sequence[str] = ()) -> Any:
    """An onnxruntime session of an ONNX file that gives inner tensors, too: those named, or all.

    Raises ProtosegError: the extra ``onnx`` is not installed; another file, or one with its weights elsewhere.
    """
    require("onnx", "onnx", "onnxruntime")
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    text = "expected an ONNX file that holds its weights, one float32 input b 3 h w and the tensors that are named"
    # protobuf, onnx and onnxruntime raise what they like
    with told(lambda error: f"{text}, got another ({first_line(error)[:300]})", Exception):
        model = onnx.load_from_string(file)
        onnx.external_data_helper.convert_model_from_external_data(model)  # a checkpoint opens no other file
        names = outputs or [name for node in model.graph.node for name in node.output if name]
        own = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in own)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        _input(session, TRIAL)
    return session


def _input(session: Any, free: Sequence[int]) -> tuple[str, int, int]:
    """Its name, and height and width of images; where the file leaves these open, those of ``free``."""
    (image,) = session.get_inputs()
    if image.type != "tensor(float)" or image.shape[1] != 3:
        raise ValueError(f"{image.type} of {image.shape}")
    rows, columns = (n if isinstance(n, int) else other for n, other in zip(image.shape[2:], free, strict=True))
    return image.name, rows, columns


def look_inside(
    network: nn.Module | str | Path, num_channels: int, features: Sequence[str] | None, **seen: Any
) -> tuple[NetworkEncoder, dict[str, Any] | None]:
    """An encoder of maps of a network and, last, its logits; of a file, what :class:`OnnxNetwork` is made of.

    Arguments and errors as of :meth:`protoseg.Model.from_network`.
    """
    size: Sequence[int] = TRIAL
    if isinstance(network, nn.Module):
        if "stride" in seen:
            return NetworkEncoder(network, num_channels, **seen), None
        image = torch.zeros(1, 3, *size, device=next(network.parameters(), torch.empty(0)).device)
        with torch.no_grad():
            maps, given = inside(network.eval(), image, [name for name, _ in network.named_modules() if name])
    elif Path(network).is_file():
        file = Path(network).read_bytes()
        session = onnx_session(file)
        name, *size = _input(session, TRIAL)
        found = session.run(None, {name: np.zeros((1, 3, *size), np.float32)})
        maps = {one.name: torch.as_tensor(x) for one, x in zip(session.get_outputs(), found, strict=True)}
        logits = session.get_outputs()[0].name  # of the file's own
        given = [maps[logits]]
    else:
        raise ProtosegError(f"expected a network, or an ONNX file, got {network}: there is no such file")
    depth, stride = _form(given[-1], size)
    if depth != num_channels:
        text = f"{depth or 'no'} names or None, one for each channel of the logits"
        raise ProtosegError(f"classes: expected {text}, got {num_channels}")
    forms = {name: _form(x, size) for name, x in maps.items()}
    forms = {name: (c, s) for name, (c, s) in forms.items() if s and (s % stride == 0 or stride % s == 0)}
    if features is None:  # at each stride the widest, the last of these, that is not of classes
        inner = [(c, s, name) for name, (c, s) in forms.items() if c != depth] if len(given) == 1 else []
        best = {s: name for _, s, name in sorted(inner, key=lambda form: form[0])}
        features = [best[s] for s in sorted(best)]
    if unknown := [name for name in features if name not in forms]:
        raise ProtosegError(f"features: expected maps out of {', '.join(forms)}, got {', '.join(unknown)}")
    channels, strides = zip(*map(forms.get, features), *(_form(x, size) for x in given), strict=True)
    if isinstance(network, nn.Module):
        return NetworkEncoder(network, channels, strides, features=features, **seen), None
    made_of: dict[str, Any] = {"length": [*divmod(len(file), BLOCK)], "outputs": [*features, logits]}
    runner = OnnxNetwork(**made_of)
    runner.file.copy_(torch.frombuffer(bytearray(file), dtype=torch.uint8))
    return NetworkEncoder(runner, channels, strides, **seen), made_of


def _form(x: Any, size: Sequence[int]) -> tuple[int, int]:
    """Channels and stride of a map of an image of that size; zeros for anything else."""
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
        return 0, 0
    stride = size[0] // x.shape[2]
    return (x.shape[1], stride) if [stride * side for side in x.shape[2:]] == [*size] else (0, 0)
