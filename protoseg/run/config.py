"""Where the configs lie, what words compose them to, and one clear message with an exit code where they are wrong."""

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.conf import RuntimeConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from protoseg.files import disk_refusal
from protoseg.text import command, override, say, visible
from protoseg.types import ProtosegError, causes, told, yaml_beside

_PACKAGE = Path(__file__).resolve().parents[1]
# In a wheel the configs lie inside the package, in a checkout beside it.
CONFIG_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())
_ROWS: dict[str, list[str]] = yaml_beside(__file__, "ranges.yaml")
_RANGES = {name: words for words, names in _ROWS.items() for name in names}

PLUGINS = {"optuna": "optuna", "joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm"}
"""Hydra's sweepers and launchers that are packages of their own, and our extra that installs each."""

_ADVICE = ", set env var HYDRA_FULL_ERROR=1 to see chained exception."
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
_MEMORY = re.compile("out of memory|allocate memory")  # torch's, of GPUs and of this machine
# Lightning's, and submitit's for jobs that the cluster ended; by name, for neither is to be imported here.
_OTHERS = ("MisconfigurationException", "UncompletedJobError", "FailedJobError")
_OF_NAMES = ("relabel", "mapping", "hierarchy", "weights", "subsets")  # whose keys are the user's names of no object
_VALUED = ("--cfg", "-c", "--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p")


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


def check_hidden(runtime: RuntimeConf) -> None:
    """Raise ProtosegError for a chosen file of the user's, as in ``--config-dir``, where Hydra takes ours instead."""
    for group, name in runtime.choices.items():
        ours = CONFIG_DIR / f"{group.partition('@')[0]}/{name}.yaml"
        for folder in [Path(source.path) for source in runtime.config_sources if source.schema == "file"]:
            theirs = folder / ours.relative_to(CONFIG_DIR)
            if ours.is_file() and theirs.is_file() and not ours.samefile(theirs):
                raise ProtosegError(f"{theirs}: a file of ours of that name hides it; give it another name")


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
        value = section[name]
        # An object of the user's may have a setting's name.
        if isinstance(value, DictConfig) and (words is None or "_target_" in value):
            yield from _ranged(value, f"{key}.", ours) if last not in _OF_NAMES or "_target_" in value else ()
        elif words is not None and ours and (value is not None or path not in ("augment.", "callbacks.", "logger.")):
            yield key, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value, words


def _allowed(value: Any, words: str) -> bool:
    if words == "true or false":
        return isinstance(value, bool)
    path = words.startswith(("a path", "a text"))
    if path or value is None or isinstance(value, str):
        return (path and isinstance(value, str)) or ("null" if value is None else value) in words.split(" or ")
    many, numbers = isinstance(value, list), value if isinstance(value, list) else [value]
    forms = ("a list", "two" if len(numbers) == 2 else "a list") if many else ("a number", "a whole")
    bound, least, most = re.search(r"(from|above) (\S+) (?:up )?to (\S+)", words).groups()  # type: ignore[union-attr]
    low, high = float(least) + (1e-300 if bound == "above" else 0), float(most)
    kinds = (int,) if "whole" in words else (int, float)
    right = any(form in words for form in forms) and bool(numbers)
    return right and all(type(number) in kinds and low <= number <= high for number in numbers)


def named(words: Sequence[str], places: Sequence[str]) -> list[str]:
    """Words as Hydra takes them, options last: ``RUN/best.ckpt`` becomes ``ckpt_path=RUN/best.ckpt`` by its place."""
    free = [place for place in places if not any(word.startswith(f"{place}=") for word in words)]
    options: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-") or before in _VALUED:
            options.append(word)
        elif not free or word.startswith(("~", "+")) or ("=" in word.partition("/")[0] and not os.path.isfile(word)):
            overrides.append(word)
        else:
            overrides.append(override(free.pop(0), word))
    return overrides + options


def run_with_clear_errors(main: Callable[[], None], config_name: str) -> None:
    """Run ``main``; end with exit code 1 and one message for errors that the user can mend, as others do not."""
    try:
        with explained(config_name):
            main()
    except ProtosegError as error:
        say(f"error: {error}", stderr=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)


def explained(config_name: str = "train") -> AbstractContextManager[None]:
    """Raise ProtosegError with the message of :func:`explain` for an error that the user can mend."""
    return told(lambda error: explain(error, config_name), Exception)


def explain(error: BaseException, config_name: str) -> str | None:
    """The message for an error that the user can mend, None for any other."""
    for cause in causes(error):
        if isinstance(cause, ProtosegError):
            return str(cause)
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            group, _, name = cause.missing_cfg_file.rpartition("/")
            if name in PLUGINS and group.startswith("hydra/"):
                return f"{name}: a plugin of Hydra is not installed; run pip install 'protoseg[{PLUGINS[name]}]'"
            hint = _nearest(name, [str(option) for option in cause.options or []])
            return f"unknown {group or 'config'} {name!r}.{hint} Available: {', '.join(cause.options or [])}"
        if isinstance(cause, ConfigCompositionException):
            return _explain_override(cause, config_name)
        if isinstance(cause, OverrideParseException):
            key, _, value = str(cause.override).partition("=")
            remedy = f"; a path or another text goes into quotes: {command(override(key, value))}" if value else ""
            return f"cannot read the override {cause.override!r}: {str(cause).splitlines()[0]}{remedy}"
        if isinstance(cause, ValueError) and str(cause).startswith("Config group override"):  # Hydra's, of a number
            return f"{' '.join(str(cause).split())}; choose one by its name, see python train.py --help"
        if isinstance(cause, MissingMandatoryValue):
            return f"{cause.full_key}: expected a value, got none; give {cause.full_key}=…"
        if type(cause).__name__ in _OTHERS or isinstance(cause, OmegaConfBaseException):
            return " ".join(str(cause).split())
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and _MEMORY.search(str(cause))):
            train = "a smaller data.batch_size or data.crop_size, or trainer.precision=bf16-mixed"
            to_predict = "to predict: inference=slide inference.crop_size=[512,512]"
            return f"out of memory ({visible(str(cause))[:150]}): set {train} ({to_predict})"
        if type(cause).__name__ == "DistNetworkError":  # torch's
            address, port = (os.environ.get(f"MASTER_{name}") for name in ("ADDR", "PORT"))
            text = f"the processes cannot meet at port {port} of {address} ({str(cause).splitlines()[0]})"
            return f"{text}; where it is in use choose another: torchrun --master-port=N, or under SLURM MASTER_PORT=N"
        if isinstance(cause, RuntimeError) and str(cause).startswith("DataLoader worker"):  # torch's, raised anywhere
            from protoseg.data.loading import worker_failure

            return worker_failure(cause)
    if isinstance(error, OSError) and error.errno in _DISK:
        run = HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else "."  # write() names no file
        return f"{disk_refusal(error, Path(os.fsdecode(error.filename or run)))}; choose another folder, or free space"
    if isinstance(error, HydraException):
        text = " ".join(str(error).replace(_ADVICE, "").split())
        if found := re.search(r"(\w+)': TypeError\(.\1.* unexpected keyword argument '(\w+)'.* full_key: (\S+)", text):
            kind, name, section = found.groups()
            text = f"{section}.{name}: expected settings of {kind}, got one that it does not have"
            return f"{text}; leave it out, or with ~{section}.{name} where an experiment sets it for another choice"
        missing = next((cause for cause in causes(error) if isinstance(cause, ModuleNotFoundError)), None)
        # Packages that look for others themselves give advice, and no name.
        return text + (f" ({missing}): put its folder on PYTHONPATH" if missing and missing.name else "")
    return None


def _explain_override(error: ConfigCompositionException, config_name: str) -> str:
    text = " ".join(str(error).split())
    match = re.search(r"Could not (?:override|delete)[^']*'([^'@]+)", text)
    if match is None:
        return text
    wrong = match.group(1).split("=")[0]
    for word in sys.argv:  # Hydra composes what is not swept with none of the swept choices
        if word.startswith(f"{wrong}=") and any(re.match(rf"{wrong.partition('.')[0]}=.*,", w) for w in sys.argv):
            key, _, value = word.partition("=")
            only = command(f"{key}=choice({value})")
            return f"{key}: expected to be of every choice swept beside it, got some without; write {only}"
    # Every key that may be overridden, with the groups that were chosen; the defaults' where that is of a group.
    if isinstance(error.__cause__, OmegaConfBaseException) and error.__cause__.parent_node is not None:
        cfg = error.__cause__.parent_node._get_root()
    else:
        GlobalHydra.instance().clear()
        cfg = composed(config_name)
    valid = [key for key in _keys(cfg) if key != "hydra" and not key.startswith("hydra.")]
    groups = [path.name for path in CONFIG_DIR.iterdir() if path.is_dir()]
    near = _nearest(wrong, [name for name in valid + groups if name != wrong])
    return f"unknown override {wrong!r}.{near} To add a new key write +{wrong}=…"


def _nearest(wrong: str, valid: list[str]) -> str:
    # A key is often right but for its group, so its last part is matched as well.
    last = {name.rpartition(".")[2]: name for name in valid}
    close = difflib.get_close_matches(wrong, valid, n=3, cutoff=0.6)
    close += [last[name] for name in difflib.get_close_matches(wrong.rpartition(".")[2], last, n=3, cutoff=0.75)]
    close = list(dict.fromkeys(close))[:3]
    return f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""


def _keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, cfg):
        yield f"{prefix}{key}"
        if not (OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key)) and OmegaConf.is_dict(cfg[key]):
            yield from _keys(cfg[key], f"{prefix}{key}.")
