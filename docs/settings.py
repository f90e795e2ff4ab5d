"""Write the table of settings.md from the YAML: ``python -m docs.settings``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from protoseg.run.config import composed

PAGE = Path(__file__).with_name("settings.md")
MARK = "<!-- From here on written by python -m docs.settings -->\n"

NAMES = Path(__file__).parents[1] / "conf" / "experiment"
DAFORMER = ("dacs", "dacs_mit_b5", "daformer", "hrda", "mic", "pgpc_daformer", "pgpc_hrda", "daformer_ours")
PROTOSEG = (
    "protoseg_hrnet_w48", "protoseg_fcn_resnet101", "protoseg_upernet_swin_base", "protoseg_segformer_b4",
    "cityscapes_hrnet_w48_prototype",
)  # fmt: skip
SHARED = {
    "steps, crops per step": ("trainer.max_steps", "data.batch_size"),
    "crop, scale": ("data.crop_size", "data.scale"),
    "optimizer": ("optimizer.optimizer._target_",),
    "learning rate: decoder, encoder": ("optimizer.lr", "optimizer.encoder_lr"),
    "weight decay, not on": ("optimizer.weight_decay", "optimizer.no_decay"),
    "poly: power, warm-up, times poly": ("schedule.power", "schedule.warmup_steps", "schedule.warmup_times_poly"),
    "loss divided by all pixels": ("loss.ce.all_pixels",),
}
TABLES = {
    "Adaptation": (
        DAFORMER,
        SHARED
        | {
            "encoder, decoder, head": ("encoder.name", "encoder.variant", "decoder._target_", "head._target_"),
            "teacher: alpha, threshold": ("method.alpha", "method.threshold"),
            "rows without pseudo-label": ("method.ignore_top", "method.ignore_bottom"),
            "weight of target pixels": ("method.mix.target_weight",),
            "kornia's jitter": ("method.mix.kornia",),
            "classes: of the batch, ignored too": ("method.mix.of_batch", "method.mix.ignored"),
            "feature distance": ("method.source_terms.feature_distance.weight",),
            "rare classes: T, pixels, ratio": tuple(
                f"data.rare_classes.{key}" for key in ("temperature", "min_pixels", "min_crop_ratio")
            ),
            "detail loss, fusion as released": ("loss.detail.weight", "segmentor.released_fusion"),
            "masked: patch, share": ("method.terms.masked.block_size", "method.terms.masked.ratio"),
            "contrast: size, align_corners, τ": ("contrast.size", "contrast.align_corners", "contrast.temperature"),
            "judged at scale": ("inference.mode", "inference.scales"),
        },
    ),
    "Supervised": (
        PROTOSEG,
        SHARED
        | {
            "encoder, decoder, head": ("encoder.name", "encoder.variant", "decoder._target_", "head._target_"),
            "aspect, photometric, brightness": ("data.aspect", "data.photometric", "data.brightness"),
            "class weights": ("loss.ce.class_weights",),
            "PPC: weight, τ; PPD": ("loss.ppc.weight", "loss.ppc.temperature", "loss.ppd.weight"),
            "prototypes, momentum, warm-up": ("head.num_prototypes", "head.momentum", "head.momentum_warmup"),
            "init, logits, assignment": ("head.init", "head.logits", "head.assignment"),
            "rows of unit length": ("head.row_norm",),
            "align_corners: HRNet, decoder, logits": (
                "encoder.fuse_align_corners", "decoder.align_corners", "segmentor.align_corners",
            ),
            "precision": ("trainer.precision",),
        },
    ),
}  # fmt: skip
"""By title: recipes, and what a row shows of each."""


@cache
def recipe_config(name: str) -> DictConfig:
    """A recipe, composed."""
    return composed("train", [f"experiment={name}", "paths.output=."])


def shown(value: Any) -> str:
    """A value as a cell."""
    if OmegaConf.is_list(value):
        return f"{len(value)} numbers" if len(value) > 4 else "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value.rpartition(".")[2] if isinstance(value, str) and value.count(".") > 1 else str(value)


def cell(config: Any, keys: tuple[str, ...]) -> str:
    """What a recipe has for these keys; those that it lacks are left out."""
    values = [OmegaConf.select(config, key, default="") for key in keys]
    if all(key.endswith("no_decay") or value in ("", None) for key, value in zip(keys, values, strict=True)):
        return "–"
    said = [
        "norms, biases" if key.endswith("no_decay") and value is None else value
        for key, value in zip(keys, values, strict=True)
    ]
    return ", ".join(shown(value) for value in said if value not in ("", None))


def tables() -> str:
    """All tables, as Markdown."""
    lines = []
    for title, (recipes, rows) in TABLES.items():
        configs = [recipe_config(name) for name in recipes]
        lines += [
            f"## {title}",
            "",
            f"| | {' | '.join(f'`{name}`' for name in recipes)} |",
            "|---" * (len(recipes) + 1) + "|",
        ]
        lines += [f"| {row} | {' | '.join(cell(config, keys) for config in configs)} |" for row, keys in rows.items()]
        lines += ["", *(f"- `{name}`: {head(name)}" for name in recipes), ""]
    return "\n".join(lines)


def released() -> dict[str, dict[str, Any]]:
    """Values of the released codes, by recipe and key."""
    return yaml.safe_load(PAGE.with_name("released.yaml").read_text())


def differences() -> dict[tuple[str, str], tuple[Any, Any]]:
    """By recipe and key where ours is another value: the released one, and ours (None where there is no such key)."""
    found = {}
    for recipe, values in released().items():
        config = recipe_config(recipe)
        for key, there in values.items():
            here = OmegaConf.select(config, key)
            if (list(here) if OmegaConf.is_list(here) else here) != there:
                found[recipe, key] = (there, here)
    return found


def comparison() -> str:
    """What was compared with the released codes, and what differs, as Markdown."""
    found = differences()
    lines = ["## Against the released codes", "", "| recipe | values compared | agree | differ |", "|---|---|---|---|"]
    for recipe, values in released().items():
        other = [
            f"`{key}`: **there {there}**, here {here}" for (name, key), (there, here) in found.items() if name == recipe
        ]
        lines.append(f"| `{recipe}` | {len(values)} | {len(values) - len(other)} | {'; '.join(other) or '–'} |")
    return "\n".join([*lines, ""])


def head(recipe: str) -> str:
    """What a recipe says of the figure to expect."""
    lines = (NAMES / f"{recipe}.yaml").read_text().splitlines()
    return next(line.removeprefix("# Expected: ") for line in lines if line.startswith("# Expected: "))


def written() -> str:
    """All that is below the mark."""
    return comparison() + "\n" + tables()


def main() -> None:
    """Write the page anew below its mark."""
    PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + "\n" + written())


if __name__ == "__main__":
    main()
