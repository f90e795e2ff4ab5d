"""Export to ONNX, and the comparison of the file with the model it was made from."""

import copy
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from protoseg.data.decoding import Range
from protoseg.files import write_file
from protoseg.functional.resize import grid_size, pad_to_multiple
from protoseg.functional.similarity import unknown
from protoseg.models.adapters import merge
from protoseg.models.hrda import HRDASegmentor
from protoseg.models.segmentor import Segmentor
from protoseg.types import LabelSpace, ProtosegError, Size, require

logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # its warnings are of torchvision

MAX_SIDE = 8192  # pixels: free sizes go up to so many a side


class Difference(NamedTuple):
    """Between a model and its ONNX file on the same images: of all but the labels, and share of pixels with another."""

    logits: float
    labels: float


def export_onnx(
    model: Segmentor, label_space: LabelSpace, path: str | Path, size: Size | None = None, ranges: Sequence[Range] = ()
) -> Path:
    """Write ``model`` as an ONNX file.

    Input ``image``: uint8 RGB, ``b 3 h w``; it is normalised inside. With ``ranges``, the values of each channel that
    become 0 and 1, it is float32 ``b c h w`` in [0, 1]. Outputs ``labels``: class ids ``b h w``, uint8 or, of more than
    255 classes, int32; ``logits``: ``b c h/s w/s`` on the decoder's grid; and of a model with statistics ``confidence``
    and ``unknown``, fp32 ``b h w``, as of :class:`protoseg.evaluation.predictor.Doubt`. Classes, colours, ranges
    and the groups of a tree (``parents`` of :class:`LabelSpace`) stand in the file's metadata, as JSON.

    The file is for one ``size``, height and width, or for any: padding and cropping are inside. Only where the exporter
    cannot follow an encoder so (windows of attention) is it for multiples of its coarsest stride: :func:`multiple_of`.
    Raises ProtosegError: ``onnx`` is not installed, a size that the model cannot take, or a disk that refuses.
    """
    require("onnx", "onnx", "onnxscript")
    if not any(True for _ in model.parameters()):
        raise ProtosegError("export: expected a network of torch, got an ONNX file that was wrapped: use that")
    multiple = max(model.encoder.strides)
    if size is None and (isinstance(model, HRDASegmentor) or (model.discriminant and model.discriminant.new)):
        text = "export: expected a fixed size for HRDA, whose windows depend on it, and taught classes, whose maps do"
        raise ProtosegError(f"{text}, got none; give --size")
    if size is not None and min(size) < 1:
        raise ProtosegError(f"export: expected a height and width of at least 1, got {size}")
    copied = copy.deepcopy(model).cpu().eval()
    merge(copied)
    network = _Network(copied, size)
    outputs = ["labels", "logits", *(["confidence", "unknown"] if model.discriminant else [])]
    names: dict[str, Any] = {"input_names": ["image"], "output_names": outputs}
    for step in (1, multiple):
        height, width = size or (3 * multiple + 5 // step, 4 * multiple + 3 // step)
        image = _inputs(torch.zeros(2, model.mean.shape[1], height, width), bool(ranges))
        most = MAX_SIDE // step
        sides = {i: step * torch.export.Dim(name, min=2, max=most) for i, name in ((2, "height"), (3, "width"))}
        shapes = {"image": {0: torch.export.Dim("batch"), **(sides if size is None else {})}}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter's own deprecated parts
            program: Any = torch.onnx.export(network, (image,), dynamo=True, dynamic_shapes=shapes, **names)
        if size is not None or not any(isinstance(side, int) for side in program.model.graph.inputs[0].shape[2:]):
            break
    kind = f"float32 in [0, 1], b {len(ranges)} h w" if ranges else "uint8 RGB, b 3 h w"
    program.model.metadata_props.update({"multiple": str(step), "input": f"image: {kind}, not normalised"})
    values = {"ranges": ranges} | {key: getattr(label_space, key) for key in ("classes", "colors", "parents")}
    program.model.metadata_props.update({name: json.dumps(value) for name, value in values.items()})
    write_file(Path(path), lambda partial: program.save(str(partial), external_data=False))
    return Path(path)


def multiple_of(path: str | Path) -> int:
    """Height and width of the images of a file must be multiples of this; 1 is any size, or the file's one size."""
    import onnx

    return int({entry.key: entry.value for entry in onnx.load(path).metadata_props}["multiple"])


def compare_onnx(model: Segmentor, path: str | Path, sizes: Sequence[Size], scaled: bool = False) -> Difference:
    """The largest difference between ``model`` and its file on random images, two of each size; as ``require``.

    ``scaled``: the file was written with ``ranges``.
    """
    require("onnx", "onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    network, generator = _Network(model.cpu().eval(), sizes[0]), torch.Generator().manual_seed(0)
    logits, labels = 0.0, 0.0
    for size in sizes:
        # Soft blobs: noise alone would be one class everywhere.
        blobs = torch.rand(2, model.mean.shape[1], 6, 8, generator=generator)
        image = _inputs(F.interpolate(blobs, size, mode="bicubic").clamp(0, 1), scaled)
        with torch.no_grad():
            own = list(network(image))
        there = [torch.from_numpy(output) for output in session.run(None, {"image": image.numpy()})]
        own[2:] = [values.where(own[0] == there[0], 0) for values in own[2:]]  # confidence is by class
        there[2:] = [values.where(own[0] == there[0], 0) for values in there[2:]]
        for a, b in zip(own[1:], there[1:], strict=True):
            gap = (a - b).abs().where(a != b, 0).nan_to_num(torch.inf)  # ``max`` would pass NaN over
            logits = max(logits, float(gap.max()))
        labels = max(labels, float((own[0] != there[0]).float().mean()))
    return Difference(logits, labels)


def _inputs(image: Tensor, scaled: bool) -> Tensor:
    return image if scaled else (image * 255).to(torch.uint8)


class _Network(nn.Module):
    """What is exported: uint8 image to the outputs; ``size`` is None where it is left free."""

    def __init__(self, model: Segmentor, size: Size | None) -> None:
        super().__init__()
        if size is None:
            _pad_explicitly(model)
        self.model, self.free = model, size is None

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        model, (height, width) = self.model, image.shape[-2:]
        rows, columns = grid_size((height, width), model.stride)
        if self.free:  # as the model does
            padded = pad_to_multiple(model.normalize(image), max(model.encoder.strides))
            output = model.head(_cropped(model.decoder(model.encoder(padded)), rows, columns))
            output = output._replace(logits=model.decided(output.logits))
        else:
            output = model(image)
        whole, known = (rows * model.stride, columns * model.stride), model.discriminant
        cells = output.logits if known is None else torch.cat([output.logits, unknown(output, known.taught)], 1)
        full = F.interpolate(cells, whole, mode="bilinear", align_corners=model.align_corners)
        scores = full[:, : model.num_classes]
        found = [scores.argmax(1).to(torch.uint8 if model.num_classes <= 255 else torch.int32)]
        if known is not None:
            found += [scores.softmax(1).amax(1), full[:, -1]]
        labels, *doubt = (_cropped(values, height, width) for values in found)
        if known is not None:
            doubt[0] = known.log_odds(doubt[0].logit(1e-7), labels.long()).sigmoid()
        return labels, output.logits, *doubt


def _cropped(x: Tensor, height: int, width: int) -> Tensor:
    # By indices: of slices the exporter does not know the size.
    return x.index_select(-2, torch.arange(height)).index_select(-1, torch.arange(width))


def _pad_explicitly(module: nn.Module) -> None:
    """TensorFlow's SAME padding depends on the image's size; for whole cells of every stride it is a constant."""
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            (k, _), (s, _) = child.kernel_size, child.stride
            total = max((k - 1) * child.dilation[0] + 1 - s, 0)
            channels, bias = (child.in_channels, child.out_channels), child.bias is not None
            plain = nn.Conv2d(*channels, k, s, 0, child.dilation, child.groups, bias)
            plain.weight, plain.bias = child.weight, child.bias
            before, after = total // 2, total - total // 2
            setattr(module, name, nn.Sequential(nn.ZeroPad2d((before, after, before, after)), plain))
        else:
            _pad_explicitly(child)
