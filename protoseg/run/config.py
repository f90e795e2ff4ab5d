"""Where the configs lie, and what they compose to."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from types import NoneType

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf

from protoseg.text import override
from protoseg.types import ProtosegError

_PACKAGE = Path(__file__).resolve().parents[1]
# In a wheel the configs lie inside the package, in a checkout beside it.
CONFIG_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())


def composed(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A config of ``conf/`` with overrides, as ``train.py`` and ``evaluate.py`` would get it."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(config_name, [*overrides])


def split_choices(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides that choose among files of conf/, or are of the config itself, and those of a value in a section."""
    choices = [word for word in overrides if "." not in (key := word.partition("=")[0]) or "@" in key]
    return choices, [word for word in overrides if word not in choices]


def check_values(values: Sequence[str], cfg: DictConfig, default: DictConfig) -> None:
    """Look at ``values``, overrides that made ``cfg`` of ``default``, in sections of our own classes; imports nothing.

    Raises ProtosegError: a number or a list is now something else, or a new key is nearly the name of another one.
    """
    for word in values:
        key = word.partition("=")[0].lstrip("+~")
        section, _, name = key.rpartition(".")
        known = OmegaConf.select(default, section)
        if not isinstance(known, DictConfig) or not str(known.get("_target_")).startswith("protoseg."):
            continue
        near = difflib.get_close_matches(name, map(str, known), n=1, cutoff=0.9)
        if name not in known and near:
            raise ProtosegError(f"unknown override {key!r}. Did you mean '{section}.{near[0]}'?")
        before, now = OmegaConf.select(default, key), OmegaConf.select(cfg, key)
        for kind, types in (("a number", (int, float)), ("a list", ListConfig)):
            form = str(before).replace(" ", "")
            if isinstance(before, types) and not isinstance(before, bool) and not isinstance(now, (types, NoneType)):
                raise ProtosegError(f"{key}: expected {kind}, e.g. {form}, got {now!r}")


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
