from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from protoseg.analysis.embedding import EmbeddingCollector, EmbeddingSample, embedding_figure, embedding_map
from protoseg.analysis.stream import collect, scenes
from protoseg.types import ProtosegError
from tests.analysis.toy import SPACE, Toy, loader


def sample_embeddings(model: Toy, images: DataLoader[Any], pixels: int) -> EmbeddingSample:
    collector = EmbeddingCollector(pixels // 3)
    collect(scenes(model, images), collector)
    return collector.compute()


def test_the_sample_is_balanced_and_holds_embeddings_of_its_classes() -> None:
    model = Toy()
    sample = sample_embeddings(model, loader(), pixels=60)
    assert sample.label.bincount().tolist() == [20, 20, 20]
    assert torch.allclose(sample.embeddings.norm(dim=1), torch.ones(60))
    seen = {scene.number: scene for scene in scenes(model, loader())}
    for vector, label, image in zip(sample.embeddings, sample.label, sample.image, strict=True):
        scene = seen[int(image)]
        cells = scene.output.embeddings[0].flatten(1).T  # a cosine does not tell the nearest: in fp32 many are 1
        assert (cells - vector).abs().amax(1).min() < 1e-6
        # Blocks of one colour have several cells with the same embedding.
        same = cells @ vector > 1 - 1e-5
        assert int(label) in scene.cell_label[same].tolist()


def test_every_cell_of_the_stream_has_the_same_chance() -> None:
    stream = list(scenes(Toy(), loader()))
    counts = torch.stack([(scene.cell_label + 1).bincount(minlength=4)[1:] for scene in stream]).double()
    drawn = torch.zeros_like(counts)
    for seed in range(300):
        collector = EmbeddingCollector(4, seed)
        for scene in stream:
            collector.update(scene)
        sample = collector.compute()
        drawn += torch.zeros_like(counts).index_put_((sample.image, sample.label), torch.ones(12).double(), True)
    assert torch.allclose(drawn / drawn.sum(0), counts / counts.sum(0), atol=0.05)


def test_fewer_pixels_than_asked_for_are_all_there_once() -> None:
    sample = sample_embeddings(Toy(), loader(), pixels=10**6)
    labelled = sum(int(scene.labelled.sum()) for scene in scenes(Toy(), loader()))
    assert len(sample.label) == labelled


def test_images_without_labels_are_sampled_by_prediction() -> None:
    assert len(sample_embeddings(Toy(), loader(void=True), pixels=30).label) > 0


def test_the_map_keeps_clusters_and_their_prototypes_together() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = F.normalize(torch.randn(3, 1, 8, generator=generator), dim=2)
    noise = 0.05 * torch.randn(3, 40, 8, generator=generator)
    vectors = F.normalize(centers + noise, dim=2).flatten(0, 1)
    label = torch.arange(3).repeat_interleave(40)
    found = embedding_map(EmbeddingSample(vectors, label, label), centers)
    assert found.prototypes == 3
    stars, points = np.split(found.places.numpy(), [found.prototypes])
    assert points.shape == (120, 2)
    assert stars.shape == (3, 2)
    assert found.label.tolist() == [0, 1, 2, *label.tolist()]
    middles = np.stack([points[label == i].mean(0) for i in range(3)])
    distance = np.linalg.norm(points[:, None] - middles, axis=2)
    assert (distance.argmin(1) == label.numpy()).all()
    assert np.linalg.norm(stars[:, None] - middles, axis=2).argmin(1).tolist() == [0, 1, 2]
    assert len(embedding_figure(found, SPACE).axes[0].texts) == 3


def test_too_few_points_and_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    one = EmbeddingSample(torch.ones(1, 2), torch.zeros(1).long(), torch.zeros(1).long())
    with pytest.raises(ProtosegError, match="at least 4 points"):
        embedding_map(one, torch.ones(1, 1, 2))
    with pytest.raises(ProtosegError, match="at least one image"):
        EmbeddingCollector(3).compute()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ProtosegError, match=r"expected sklearn to be installed, got none: .*'protoseg\[analysis\]'"):
        embedding_map(one, torch.ones(1, 1, 2))
