"""Where the configs lie, and what they compose to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from protoseg.text import override

_PACKAGE = Path(__file__).resolve().parents[1]
# In a wheel the configs lie inside the package, in a checkout beside it.
CONFIG_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())


def composed(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A config of ``conf/`` with overrides, as ``train.py`` and ``evaluate.py`` would get it."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(config_name, [*overrides])


_VALUED = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p")


def named(words: Sequence[str], places: Sequence[str]) -> list[str]:
    """Words as Hydra takes them, options first; by their place: ``RUN/best.ckpt`` becomes ``ckpt_path=RUN/best.ckpt``.

    A word with ``=`` before any ``/`` is an override itself. A place whose key has a value already is none.
    """
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
