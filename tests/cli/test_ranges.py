"""Every number of every YAML in conf/ is looked at before anything is built: what makes no sense is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from protoseg.run.config import CONFIG_DIR, check_ranges
from protoseg.types import ProtosegError

UNCHECKED = ("hydra.", "trainer.devices", "augment.", "data.source.weights.")
"""Hydra's own, with types; Lightning knows the devices of this machine; albumentations checks its arguments; a number
for each part, of any name, ConcatDataModule."""
MINUS_ONE = {"num_sanity_val_steps", "save_top_k", "max_epochs", "in_index", "ignore_index"}
ZERO = MINUS_ONE | {
    *("num_workers", "warmup_steps", "num_convs", "low_rank", "high_rank", "ignore_top", "ignore_bottom", "brightness"),
    "regions",
    *("max_restarts", "max_overlays", "min_pixels", "ohem_min_kept", "seed", "split_seed", "momentum", "alpha"),
    *("confident", "reliable", "ratio", "probability", "jitter_probability", "detail_weight", "min_ratio", "dropout"),
    *("offset", "margin"),
    *("drop_path_rate", "warmup_start", "lr", "encoder_lr", "weight_decay", "power", "weight", "uniformity", "beta"),
    *("target_weight", "jitter", "min_crop_ratio", "momentum_warmup", "limit_val_batches", "class_weights"),
}
NULL = {
    *("max_overlays", "max_epochs", "every_n_train_steps", "stride", "ohem_threshold", "max_class_share", "encoder_lr"),
    *("limit_val_batches", "class_weights", "beta", "layer_decay", "focal_gamma"),
}


def numbers(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every number, and list of numbers, with its key."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from numbers(value, f"{path}.{name}".strip("."))
    elif all(type(value) in (int, float) for value in (node if isinstance(node, list) and node else [node])):
        yield path, node


def of_all_files() -> dict[str, Any]:
    found = {}
    for file in CONFIG_DIR.rglob("*.yaml"):
        group = file.relative_to(CONFIG_DIR).parts[0]
        section = "" if group.endswith(".yaml") or group in ("experiment", "sweep", "debug", "launcher") else group
        section = {"pair": "data"}.get(section, section)
        found |= dict(numbers(OmegaConf.to_container(OmegaConf.load(file)), section))
    return {key: value for key, value in found.items() if not key.startswith(UNCHECKED)}


def refused(key: str, value: Any) -> bool:
    try:
        check_ranges(OmegaConf.create(nested(key, value)))
    except ProtosegError as error:
        return (
            re.fullmatch(rf"{re.escape(key)}: expected .+, got .+; give {re.escape(key)}=VALUE", str(error)) is not None
        )
    return False


def nested(key: str, value: Any) -> Any:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def test_every_number_of_conf_is_checked() -> None:
    found = of_all_files()
    assert len(found) > 100
    for key, value in found.items():
        name = key.rpartition(".")[2]
        many = (lambda x, of=value: [x] * len(of)) if isinstance(value, list) else (lambda x: x)
        accepted = {
            word
            for word, tried in {
                "its own": value,
                **{"negative": many(-1), "far below": many(-1000.5), "zero": many(0), "null": None, "list": [[]]},
                **{"huge": many(10**30), "nan": many(float("nan")), "infinite": many(float("inf"))},
                **{"text": "abc", "texts": many("abc"), "true": many(True), "empty": []},
            }.items()
            if not refused(key, tried)
        }
        wanted = {"its own"}
        wanted |= {word for word, names in (("negative", MINUS_ONE), ("zero", ZERO), ("null", NULL)) if name in names}
        if key in ("inference.crop_size", "encoder.pyramid_channels"):
            wanted.add("null")
        assert accepted == wanted, key


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("optimizer.lr", -1, "a number from 0 to 1000000"),
        ("data.batch_size", 2.0, "a whole number from 1 to 1000000"),
        ("data.crop_size", 96, "two whole numbers [A,B] from 1 to 8192"),
        ("data.scale", [1.0], "two numbers [A,B] above 0 up to 16"),
        ("inference.crop_size", "big", "a whole number or two whole numbers [A,B] from 1 to 65536 or null"),
        ("segmentor.detail_size", 0, "a whole number or two whole numbers [A,B] from 1 to 65536"),
        ("loss.ce.class_weights", "balance", "a list of numbers [A,…] from 0 to 1000000 or null or balanced"),
        ("threads", 0, "a whole number from 1 to 1000000 or null"),
        ("data.root", 5, "a path (of a number alone ./5) or null"),
        ("data.dataset.mask_suffix", 1, "a text (a number as '\"1\"') or null"),
        ("encoder.freeze", 1, "true or false"),
        ("encoder.freeze", None, "true or false"),
        ("encoder.freeze", "false", "true or false"),
    ],
)
def test_the_sentence_says_what_is_allowed(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(ProtosegError) as raised:
        check_ranges(OmegaConf.create(nested(key, value)))
    assert str(raised.value) == f"{key}: expected {allowed}, got {value!r}; give {key}=VALUE"


@pytest.mark.parametrize(
    "section",
    [
        {"augment": {"flip": {"_target_": "albumentations.VerticalFlip", "p": 0.5}}},
        {"data": {"parts": {"weak": {"_target_": "protoseg.data.SegmentationDataModule", "scale": [0.5, 2.0]}}}},
        {"data": {"relabel": {"plain": None, "blur": "flip"}, "weights": {"scale": 2, "weak": 1.5}}},
        {"augment": {"flip": None}, "callbacks": {"compile": None}, "method": {"subsets": {"listed": ["car"]}}},
        {"data": {"hierarchy": {"nested": {"report": ["root", "size"]}, "flip": ["a"]}}},
    ],
)
def test_names_of_the_users_are_no_settings(section: Any) -> None:
    check_ranges(OmegaConf.create(section))


def test_a_setting_of_an_object_of_the_users_name_is_looked_at() -> None:
    part = {"_target_": "protoseg.data.SegmentationDataModule", "batch_size": 0}
    parts = {"data": {"parts": {"weak": part}}}, {"data": {"parts": {"weights": part}}}
    for wrong in (*parts, {"encoder": {"freeze": {"a": 1}}}):
        with pytest.raises(ProtosegError, match=r"(weak\.batch_size|weights\.batch_size|freeze): expected"):
            check_ranges(OmegaConf.create(wrong))


def test_one_side_stands_for_a_square() -> None:
    for key in ("segmentor.detail_size", "inference.crop_size"):
        check_ranges(OmegaConf.create(nested(key, 64)))


def test_what_a_strangers_class_is_given_is_for_that_class() -> None:
    for target, wanted in (("mine.Loss", False), ("protoseg.losses.CrossEntropy", True), ("torch.optim.SGD", True)):
        cfg = OmegaConf.create({"loss": {"own": {"_target_": target, "part": {"weight": -1}}}})
        if not wanted:
            check_ranges(cfg)
            continue
        with pytest.raises(ProtosegError, match=r"^loss\.own\.part\.weight: "):
            check_ranges(cfg)


def test_a_missing_value_and_the_null_of_evaluate_are_no_error() -> None:
    check_ranges(OmegaConf.create({"batch_size": None, "seed": "???", "subsets": {16: ["road"]}}))
    assert refused("data.batch_size", None)


def test_the_command_line_refuses_before_torch_is_there(tmp_path: Path) -> None:
    code = "import sys; from protoseg.cli import train\ntry: train()\nfinally: assert 'torch' not in sys.modules"
    for words in (["seed=abc"], ["-m", "seed=0,abc"]):
        folder = f"hydra.{'sweep' if len(words) > 1 else 'run'}.dir={tmp_path}/run"
        done = subprocess.run([sys.executable, "-c", code, *words, folder], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "seed: expected a whole number from 0 to 4294967295, got 'abc'; give seed=VALUE" in done.stderr
        assert "Traceback" not in done.stderr
