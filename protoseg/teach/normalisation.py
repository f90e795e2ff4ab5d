"""A trained network under another light or camera, without labels and in seconds: BatchNorm's statistics from there."""

from dataclasses import replace
from statistics import mean
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.distributions import Categorical

from protoseg.checkpoint import NETWORKS
from protoseg.data import SegmentationDataset
from protoseg.data.statistics import spread
from protoseg.trained import TrainedFile
from protoseg.types import ProtosegError, SegOutput

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
MAX_IMAGES, JUDGED, MAX_SIDE = 50, 16, 2048  # looked at; by which a weight is chosen; of a larger image a part


class Blend(NamedTuple):
    """What :func:`adapt_normalisation` found for one network."""

    network: str
    weight: float  # of the images' statistics
    entropy: dict[float, float]  # of the predictions, by weight: mean over pixels, in nats


@torch.no_grad()
def adapt_normalisation(
    file: TrainedFile, dataset: SegmentationDataset, device: torch.device | str = "cpu", title: str = ""
) -> tuple[TrainedFile, list[Blend]]:
    """The checkpoint with BatchNorm's means and variances blended with those of images that need no labels.

    Statistics of the images are means over them, each seen by itself (Schneider et al., NeurIPS 2020). Of ``WEIGHTS``
    that is taken by which the predictions on some of the images have the least entropy, what Tent (Wang et al., ICLR
    2021) descends; so 0, the network as it is, where no other makes it surer. ``title`` is of the progress bar: none
    without it. Raises ProtosegError: a checkpoint with statistics for teaching, of the network before; no BatchNorm.
    """
    if file.content["protoseg"].get("statistics"):
        text = f"checkpoint {file.path}: expected one without statistics, which would no longer be of this network"
        remedy = "adapt the checkpoint before, and make statistics and taught classes anew"
        raise ProtosegError(f"{text}, got some: {remedy}")
    state, found = dict(file.content["state_dict"]), []
    seen = spread(len(dataset), MAX_IMAGES)
    for network in file.networks:
        model = file.model(network).to(device)
        layers: list[Any] = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
        if not layers:
            raise ProtosegError(f"{file.path}: expected BatchNorm layers of torch, got none (as in an ONNX file)")
        source = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # so they become means over all images
            layer.train()
        for index in track(seen, title and f"{title} ({network})", disable=not title):
            _logits(model, dataset, index)
        target = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
        model.eval()

        def blend(weight: float, layers: Any = layers, source: Any = source, target: Any = target) -> None:
            for layer, one, other in zip(layers, source, target, strict=True):
                layer.running_mean, layer.running_var = map(torch.lerp, one, other, (weight, weight))

        entropy = {}
        for weight in track(WEIGHTS, title and "choosing the weight", disable=not title):
            blend(weight)
            judged = [_logits(model, dataset, index) for index in seen[:: -(-len(seen) // JUDGED)]]
            entropy[weight] = mean(float(Categorical(logits=x.movedim(1, -1)).entropy().mean()) for x in judged)
        chosen = min(entropy, key=entropy.__getitem__)
        blend(chosen)
        now = {f"{NETWORKS[network]}{name}": tensor.cpu() for name, tensor in model.state_dict().items()}
        state |= {name: tensor for name, tensor in now.items() if name.endswith(("running_mean", "running_var"))}
        found.append(Blend(network, chosen, entropy))
    return replace(file, content=file.content | {"state_dict": state}), found


def _logits(model: nn.Module, dataset: SegmentationDataset, index: int) -> Tensor:
    image = dataset[index].image[None, :, :MAX_SIDE, :MAX_SIDE]
    output: SegOutput = model(image.to(next(model.parameters()).device))
    return output.logits.float()
