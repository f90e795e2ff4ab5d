"""Networks of the released codes, imported by the command line from files with published names: the same outputs."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import protoseg
from protoseg.cli.main import run_tool
from protoseg.functional.resize import upsample_logits
from protoseg.run.evaluate import run_evaluation

from .conftest import golden, published_state

HRDA = ("segmentor.detail_size=[128,128]", "inference.crop_size=[256,256]", "inference.stride=[128,128]")


@torch.no_grad()
def logits_of(kind: str, checkpoint: Path, image: Tensor) -> Tensor:
    network = protoseg.load(checkpoint, device="cpu").network
    if not kind.startswith("hrda"):
        return network(image).logits[0]
    return upsample_logits(network(image[..., :256, :256]).logits, (256, 256), 4)[0, :, ::4, ::4]


@pytest.mark.parametrize(
    ("kind", "settings", "labels"),
    [
        ("daformer_mit_b0", ["inference.scales=[1.0]"], 1.0),
        pytest.param("protoseg_hrnet_w48", [], 1.0, marks=pytest.mark.slow),
        pytest.param("hrda_mit_b0", HRDA, 0.9999, marks=pytest.mark.slow),
    ],
)
def test_golden_network(
    kind: str, settings: list[str], labels: float, tmp_path: Path, configure: Callable[..., Any], capsys: Any
) -> None:
    expected = golden(kind)
    file, out, image = tmp_path / "latest.pth", tmp_path / "out.ckpt", tmp_path / "image.png"
    torch.save({"state_dict": published_state(kind), "meta": {"epoch": 1, "best": np.float64(0.5)}}, file)
    run_tool("convert", [str(file), str(out), *settings])
    assert "evaluate.py" in capsys.readouterr().out

    logits = logits_of(kind, out, torch.from_numpy(expected["image"]).permute(2, 0, 1)[None])
    assert np.abs(logits.numpy() - expected["logits"]).max() < 1e-4 * np.abs(expected["logits"]).max()
    if "labels_stride4" in expected:
        assert (logits.argmax(0).numpy() == expected["labels_stride4"]).mean() >= labels
        return
    Image.fromarray(expected["image"]).save(image)
    run_evaluation(configure("evaluate", f"ckpt_path={out}", "mode=predict", f"images={image}", "device=cpu"))
    predicted = np.asarray(Image.open(tmp_path / "run" / "labels" / "image.png"))
    assert (predicted == expected["labels"]).mean() >= labels


@pytest.mark.slow
def test_mit_b5_teacher_converts_in_a_minute_and_4_gb(tmp_path: Path) -> None:
    file, out = tmp_path / "latest.pth", tmp_path / "teacher.ckpt"
    make = (
        "import sys, torch\nfrom protoseg.models.encoders import MiTEncoder\n"
        "from tests.convert.conftest import published_state\n"
        "head = {n: t for n, t in published_state('daformer_mit_b0').items() if 'backbone' not in n}\n"
        "widths = (64, 128, 320, 512)\n"
        "for i in range(4): head[f'model.decode_head.embed_layers.{i}.proj.weight'] = torch.randn(256, widths[i])\n"
        "state = {f'model.backbone.{n}': t for n, t in MiTEncoder('b5').model.state_dict().items()} | head\n"
        "parts = ('model.', 'ema_model.', 'imnet_model.')\n"
        "torch.save({'state_dict': {n.replace('model.', p, 1): t.clone() for p in parts for n, t in state.items()}}, "
        "sys.argv[1])\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", make, str(file)], check=True, cwd=root)
    assert file.stat().st_size > 1e9, "student, teacher and the frozen encoder"
    command = [sys.executable, "-m", "protoseg", "convert", str(file), str(out), "--network", "teacher"]
    subprocess.run(command, check=True, cwd=root, timeout=60)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4e6, "kilobytes"
    assert protoseg.load(out, device="cpu").network.encoder.channels == [64, 128, 320, 512]
