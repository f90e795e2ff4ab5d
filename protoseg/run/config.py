"""Where the configs lie, and what they compose to."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from protoseg.text import override
from protoseg.types import ProtosegError

_PACKAGE = Path(__file__).resolve().parents[1]
# In a wheel the configs lie inside the package, in a checkout beside it.
CONFIG_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())
_ROWS: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("ranges.yaml").read_text("utf-8"))
_RANGES = {name: words for words, names in _ROWS.items() for name in names}


def composed(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A config of ``conf/`` with overrides, as ``train.py`` and ``evaluate.py`` would get it."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(config_name, [*overrides])


def split_choices(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides that choose among files of conf/, or are of the config itself, and those of a value in a section."""
    choices = [word for word in overrides if "." not in (key := word.partition("=")[0]) or "@" in key]
    return choices, [word for word in overrides if word not in choices]


def check_names(values: Sequence[str], default: DictConfig) -> None:
    """Raise ProtosegError for a key that ``values`` add to a section of our classes, and nearly one of ``default``."""
    for word in values:
        key = word.partition("=")[0].lstrip("+~")
        section, _, name = key.rpartition(".")
        known = OmegaConf.select(default, section)
        if not isinstance(known, DictConfig) or not str(known.get("_target_")).startswith("protoseg."):
            continue
        near = difflib.get_close_matches(name, map(str, known), n=1, cutoff=0.9)
        if name not in known and near:
            raise ProtosegError(f"unknown override {key!r}. Did you mean '{section}.{near[0]}'?")


def check_ranges(cfg: DictConfig) -> None:
    """Raise ProtosegError for a number of our, Lightning's or torch's classes that ``ranges.yaml`` does not allow."""
    for key, value, words in _ranged(cfg):
        if not _allowed(value, words):
            raise ProtosegError(f"{key}: expected {words}, got {value!r}; give {key}=VALUE")


def _ranged(section: DictConfig, path: str = "", ours: bool = True) -> Iterator[tuple[str, Any, str]]:
    if "_target_" in section:
        ours = str(section["_target_"]).startswith(("protoseg.", "pytorch_lightning.", "torch."))
    name: Any
    for name in section:
        if OmegaConf.is_missing(section, name) or OmegaConf.is_interpolation(section, name):
            continue  # what stands elsewhere is looked at there
        last = str(name)
        key = path + last
        words = next((_RANGES[known] for known in (key, path and f".{last}", last) if known in _RANGES), None)
        if words is not None and ours:
            value = section[name]
            yield key, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value, words
        elif isinstance(section[name], DictConfig):
            yield from _ranged(section[name], f"{key}.", ours)


def _allowed(value: Any, words: str) -> bool:
    if words == "true or false":
        return isinstance(value, bool)
    path = words.startswith("a path")
    if path or value is None or isinstance(value, str):
        return (path and isinstance(value, str)) or ("null" if value is None else value) in words.split(" or ")
    many, numbers = isinstance(value, list), value if isinstance(value, list) else [value]
    forms = ("a list", "two" if len(numbers) == 2 else "a list") if many else ("a number", "a whole")
    bound, least, most = re.search(r"(from|above) (\S+) (?:up )?to (\S+)", words).groups()  # type: ignore[union-attr]
    low, high = float(least) + (1e-300 if bound == "above" else 0), float(most)
    kinds = (int,) if "whole" in words else (int, float)
    right = any(form in words for form in forms) and bool(numbers)
    return right and all(type(number) in kinds and low <= number <= high for number in numbers)


_VALUED = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p")


def named(words: Sequence[str], places: Sequence[str]) -> list[str]:
    """Words as Hydra takes them, options first: ``RUN/best.ckpt`` becomes ``ckpt_path=RUN/best.ckpt`` by its place."""
    free = [place for place in places if not any(word.startswith(f"{place}=") for word in words)]
    options: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-") or before in _VALUED:
            options.append(word)
        elif "=" in word.partition("/")[0] or word.startswith(("~", "+")) or not free:
            overrides.append(word)
        else:
            overrides.append(override(free.pop(0), word))
    return options + overrides
