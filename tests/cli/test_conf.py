"""Every YAML in conf/ composes and instantiates, also where the data it names is absent."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from protoseg.cli import _group_options
from protoseg.run.build import build_datamodule, build_model, build_module, instances, plain
from protoseg.run.config import check_ranges

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if not path.name.startswith("_"))
# Experiments with every pair, below; data sets in tests/data/test_data_conf.py, without the rest of the config.
FILES = [file for file in FILES if file.parent.name not in ("experiment", "data")]
MODEL_GROUPS = {
    "encoder", "decoder", "segmentor", "head", "loss", "method", "contrast", "augment", "optimizer", "schedule",
    "debug", "hierarchy",
}  # fmt: skip
RECIPES = sorted((CONF / "experiment").glob("[!_]*.yaml"))
HEAD = ("Source", "Expected", "Hardware", "Run", "Pairs")


@pytest.fixture(autouse=True)
def _weights_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight is looked at here, and to draw those of all networks would be a sixth of the time."""
    for name in ("uniform_", "normal_", "erfinv_"):
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *_, **__: tensor.fill_(0.1))


def head_of(recipe: Path) -> dict[str, str]:
    """The lines ``# Key: value`` at the head of a recipe, in their order."""
    head = recipe.read_text().partition("\ndefaults:")[0]
    return dict(re.findall(rf"^# ({'|'.join(HEAD)}): (.+)$", head, re.MULTILINE))


def commands(recipe: Path) -> list[str]:
    """The overrides of the command in its head; and the same with each other pair."""
    head = head_of(recipe)
    first = head["Run"].removeprefix("python train.py ")
    pair, *others = head["Pairs"].split(", ") if "Pairs" in head else [""]
    return [first, *(first.replace(f"data={pair}", f"data={other}") for other in others)]


PLUGINS = {
    ("launcher", "joblib"): "hydra_joblib_launcher",
    ("launcher", "submitit"): "hydra_submitit_launcher",
    ("launcher", "submitit_local"): "hydra_submitit_launcher",
    ("sweep", "optuna"): "hydra_optuna_sweeper",
}
"""Packages of Hydra that a choice needs; each comes with an extra of ours."""


def is_needed(group: str, name: str) -> list[str]:
    """Choices that must go together with this one."""
    if (group, name) == ("decoder", "hrnet"):
        return ["encoder=hrnet_w18"]
    if group == "decoder" and name.startswith("se") and name != "segformer":
        return ["encoder=vit_small", "encoder.pyramid_channels=null"]
    if (group, name) in (("loss", "hierarchical"), ("contrast", "tree_triplet")):
        return ["hierarchy=camvid", "loss=hierarchical"]
    if group == "hierarchy":
        return [f"data={name}", "loss=hierarchical"]
    if group == "contrast" and name != "none":
        return ["method=dacs"]
    return []


@pytest.mark.parametrize("file", FILES, ids=str)
def test_composes_and_instantiates(file: Path, configure: Callable[..., DictConfig]) -> None:
    group, name = str(file.parent), file.stem
    if plugin := PLUGINS.get((group, name)):
        pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"the package {plugin} is not installed")
    config_name = name if group == "." else "train"
    overrides = [] if group == "." else [f"{group}={name}", *is_needed(group, name)]
    if group == "." and name == "evaluate":
        overrides = ["ckpt_path=x.ckpt"]
    cfg = configure(config_name, *overrides)
    plain(cfg)
    check_ranges(cfg)
    if config_name == "evaluate":
        return
    if group in MODEL_GROUPS or group == ".":
        builds(cfg)
    if group in ("callbacks", "logger", "inference", "trainer", "debug"):
        runs(cfg)


def builds(cfg: DictConfig) -> None:
    """The model of ``cfg`` with its optimizer and schedule can be made."""
    cfg.encoder.pretrained = False
    module = build_module(cfg, build_datamodule(cfg).label_space)
    optimizer = module.make_optimizer(module.model)
    module.make_schedule(optimizer, total_steps=100_000)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(module.model.parameters()))


def runs(cfg: DictConfig) -> None:
    """What stands around the model can be made."""
    assert len(instances(cfg.callbacks)) == 6 + ("cached" in cfg.callbacks)
    instances(cfg.logger)
    instantiate(cfg.inference)
    instantiate(cfg.trainer, logger=False)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_source_figure_hardware_and_command(recipe: Path) -> None:
    head = head_of(recipe)
    assert tuple(head)[:4] == HEAD[:4]
    assert f"python train.py experiment={recipe.stem}" == " ".join(head["Run"].split()[:3])
    assert ("Pairs" in head) == (" data=" in head["Run"])
    if "Pairs" in head:
        assert head["Run"].endswith(f" data={head['Pairs'].split(', ')[0]}")
    assert f"`{recipe.stem}`" in (CONF.parent / "docs" / "recipes.md").read_text()


@pytest.mark.parametrize("command", [command for recipe in RECIPES for command in commands(recipe)])
def test_a_recipe_composes_and_instantiates_with_every_pair(command: str, configure: Callable[..., DictConfig]) -> None:
    cfg = configure("train", *command.split())
    plain(cfg)
    if "variant" in cfg.encoder:
        cfg.encoder.variant = "b0"  # quick to build; every variant has a test of its own above
    elif cfg.encoder.name.startswith("vit_large"):
        cfg.encoder = {**cfg.encoder, "depth": 3}
    builds(cfg)
    cfg.trainer.devices = 1  # as many as any machine has
    runs(cfg)


@pytest.mark.parametrize(
    ("pair", "source", "target"),
    [
        ("gta5_to_cityscapes", 1.34, 1.0),
        ("synthia_to_cityscapes", 2.0, 1.0),
        ("cityscapes_to_dark_zurich", 1.0, 1.0),
        ("cityscapes_to_acdc", 1.0, 1.0),
    ],
)
def test_hrda_reads_every_pair_at_twice_the_scale(
    pair: str, source: float, target: float, configure: Callable[..., DictConfig]
) -> None:
    for name, share in (("daformer", 0.5), ("hrda", 1), ("pgpc_hrda", 1), ("hrda_ours", 1)):
        data = configure("train", f"experiment={name}", f"data={pair}").data
        assert (list(data.source.scale), list(data.target.scale)) == ([share * source] * 2, [share * target] * 2)


def test_what_a_recipe_has_no_values_for_is_refused_or_left_out(configure: Callable[..., DictConfig]) -> None:
    for recipe, group in (("small_oracle", "pair/oracle"), ("hrda", "pair/hrda")):
        with pytest.raises(MissingConfigException, match=f"{group}/streets_to_camvid"):
            configure("train", f"experiment={recipe}", "data=streets_to_camvid")
    cfg = configure("train", "experiment=hrda", "data=streets_to_camvid", "~pair/hrda")
    assert (cfg.data.source.scale, cfg.segmentor.detail_size) == ([1.2, 2.4], [512, 512])


def test_the_oracle_is_taught_the_labels_of_the_target(configure: Callable[..., DictConfig]) -> None:
    source = configure("train", "experiment=small_oracle", "data=camvid_day_to_dusk").data.source
    assert source.dataset.sequences is None
    data = configure("train", "experiment=small_oracle", "data=streets_day_to_dusk").data
    assert data.source.dataset == data.target.dataset


def test_the_papers_setting(configure: Callable[..., DictConfig]) -> None:
    cfg = configure("train", "experiment=protoseg_hrnet_w48")
    assert (cfg.trainer.max_steps, cfg.optimizer.lr, cfg.head.num_prototypes) == (80_000, 0.01, 10)
    assert (cfg.head.momentum, cfg.head.momentum_warmup, cfg.head.init) == (0.999, 0, "random")
    assert (cfg.loss.ppc.weight, cfg.loss.ppd.weight) == (0.01, 0.001)
    assert cfg.data.batch_size * cfg.trainer.devices == 8
    assert (cfg.loss.ppc.temperature, cfg.trainer.precision, cfg.head.assignment) == (1.0, "16-mixed", "released")
    assert (list(cfg.data.aspect), cfg.data.photometric, cfg.data.brightness) == ([0.9, 1.1], False, 10)
    assert (len(cfg.loss.ce.class_weights), list(cfg.optimizer.no_decay)) == (19, [])
    grids = (cfg.encoder.fuse_align_corners, cfg.decoder.align_corners, cfg.segmentor.align_corners, cfg.head.row_norm)
    assert grids == (True,) * 4


@pytest.mark.parametrize("source", ["gta5", "synthia"])
def test_the_papers_adaptation_settings(source: str, configure: Callable[..., DictConfig]) -> None:
    pair = f"data={source}_to_cityscapes"
    cfg = configure("train", "experiment=daformer", pair)
    assert (cfg.trainer.max_steps, cfg.data.batch_size, list(cfg.data.crop_size)) == (40_000, 2, [512, 512])
    assert (cfg.optimizer.lr, cfg.optimizer.encoder_lr, cfg.optimizer.weight_decay) == (6e-4, 6e-5, 0.01)
    assert (cfg.schedule.warmup_steps, cfg.schedule.power) == (1500, 1.0)
    assert (cfg.method.alpha, cfg.method.threshold) == (0.999, 0.968)
    assert (cfg.method.ignore_top, cfg.method.ignore_bottom) == (15, 120)
    assert (cfg.method.source_terms.feature_distance.weight, cfg.method.terms.mixed.weight) == (0.005, 1.0)
    rare = cfg.data.rare_classes
    assert (rare.temperature, rare.min_pixels, rare.min_crop_ratio) == (0.01, 3000, 0.5)
    assert (cfg.encoder.variant, cfg.inference.mode, list(cfg.inference.scales)) == ("b5", "whole", [0.5])
    assert list(cfg.data.target.scale) == [0.5, 0.5]

    assert (cfg.schedule.warmup_times_poly, list(cfg.optimizer.no_decay), cfg.loss.ce.all_pixels) == (
        True,
        ["norm"],
        True,
    )
    assert (cfg.method.mix.kornia, cfg.method.mix.of_batch, cfg.method.mix.ignored) == (True,) * 3
    assert cfg.method.terms.mixed.all_pixels

    dacs = configure("train", "experiment=dacs_mit_b5", pair)
    assert dacs.data.rare_classes is None
    assert "source_terms" not in dacs.method
    assert (dacs.method.alpha, dacs.method.ignore_top, dacs.method.ignore_bottom) == (0.99, 0, 0)
    own = configure("train", "experiment=dacs", pair)
    assert (own.optimizer.lr, own.optimizer.encoder_lr, own.trainer.max_steps) == (2.5e-3, 2.5e-4, 250_000)
    alone = configure("train", "experiment=source_only", pair)
    assert "terms" not in alone.method

    hrda = configure("train", "experiment=pgpc_hrda", pair)
    assert list(hrda.data.crop_size) == [1024, 1024]
    assert list(hrda.segmentor.detail_size) == [512, 512]
    assert (hrda.method.ignore_top, hrda.method.ignore_bottom, hrda.data.rare_classes.min_crop_ratio) == (30, 240, 2.0)
    weights = [hrda.loss.ce, hrda.loss.detail, hrda.method.terms.mixed, hrda.method.terms.mixed_detail]
    assert [term.weight for term in weights] == [0.9, 0.1, 0.9, 0.1]
    assert (hrda.inference.mode, list(hrda.inference.crop_size), list(hrda.inference.scales)) == (
        "slide", [1024, 1024], [1.0],
    )  # fmt: skip
    assert (hrda.contrast.temperature, list(hrda.contrast.size), hrda.contrast.align_corners) == (1.0, [65, 65], True)
    assert (hrda.method.mix.target_weight, hrda.segmentor.released_fusion, hrda.trainer.max_steps) == (
        0.8,
        True,
        40_000,
    )
    assert configure("train", "experiment=pgpc_daformer", pair).trainer.max_steps == 60_000
    assert configure("train", "experiment=pgpc_ours", pair).contrast.temperature == 0.5
    if source == "synthia":
        assert [len(classes) for classes in hrda.method.subsets.values()] == [16, 13]
        assert hrda.callbacks.best.monitor == "val/mIoU_16"
    else:
        assert (hrda.method.subsets, hrda.callbacks.best.monitor) == ({}, "val/mIoU")


@pytest.mark.parametrize("pair", ["acdc", "dark_zurich"])
def test_hrda_leaves_out_no_border_of_other_cameras(pair: str, configure: Callable[..., DictConfig]) -> None:
    cfg = configure("train", "experiment=hrda", f"data=cityscapes_to_{pair}")
    assert (cfg.method.ignore_top, cfg.method.ignore_bottom) == (0, 0)


def test_ours_take_back_what_is_released(configure: Callable[..., DictConfig]) -> None:
    cfg = configure("train", "experiment=hrda_ours", "data=gta5_to_cityscapes")
    assert not any((cfg.loss.ce.all_pixels, cfg.loss.detail.all_pixels, cfg.method.terms.mixed_detail.all_pixels))
    assert not any((cfg.method.mix.kornia, cfg.schedule.warmup_times_poly, cfg.segmentor.released_fusion))
    assert cfg.optimizer.no_decay is None
    mic = configure("train", "experiment=mic")
    assert (mic.method.terms.masked.block_size, mic.method.terms.masked.ratio) == (64, 0.7)
    assert mic.method.terms.masked.kornia


@pytest.mark.parametrize("network", ["fcn_resnet101", "upernet_swin_base", "segformer_b4"])
def test_the_twin_of_a_released_network_builds(network: str, configure: Callable[..., DictConfig]) -> None:
    cfg = configure("train", f"experiment=protoseg_{network}", "head=linear", "encoder.pretrained=false")
    if "variant" in cfg.encoder:
        cfg.encoder.variant = "b0"
    with torch.device("meta"):  # quick to build
        assert build_model(cfg, 150).head.memory is None
    losses = {name for name, term in cfg.loss.items() if term}
    assert losses == {"ce"} | ({"auxiliary"} if cfg.auxiliary else set())


def test_the_network_of_daformer_has_the_papers_parameters(configure: Callable[..., DictConfig]) -> None:
    cfg = configure("train", "experiment=daformer", "encoder.pretrained=false")
    with torch.device("meta"):  # quick to build
        assert sum(p.numel() for p in build_model(cfg, 19).parameters()) == 85_155_283


def test_the_twins_differ_in_head_and_loss_only(configure: Callable[..., DictConfig]) -> None:
    prototype, softmax = (plain(configure("train", f"experiment=camvid_{name}")) for name in ("prototype", "softmax"))
    different = {key for key in prototype if prototype[key] != softmax[key]}
    assert different <= {"head", "loss"}
    assert softmax["loss"]["ce"] == prototype["loss"]["ce"]


def test_an_experiment_of_prototypes_also_runs_with_the_twin(configure: Callable[..., DictConfig]) -> None:
    cfg = configure("train", "experiment=streets_demo", "head=parametric", "encoder.pretrained=false")
    assert list(build_module(cfg, build_datamodule(cfg).label_space).losses) == ["ce"]


def test_learned_parameters_of_the_whole_model_do_not_depend_on_the_classes(
    configure: Callable[..., DictConfig],
) -> None:
    cfg = configure("train", "head.logits=temperature", "encoder.pretrained=false")
    counts = [sum(p.numel() for p in build_model(cfg, classes).parameters()) for classes in (19, 847)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("file", sorted((CONF / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_value_of_a_sweep_composes_with_the_command_in_its_comment(
    file: Path, configure: Callable[..., DictConfig]
) -> None:
    if plugin := PLUGINS.get(("sweep", file.stem)):
        pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"the package {plugin} is not installed")
    (command,) = re.findall("^# Run: python train.py -m (.*)$", file.read_text(), re.MULTILINE)
    given = command.split()
    params = OmegaConf.load(file).hydra.sweeper.params
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    choices = {o.get_key_element(): [*o.sweep_string_iterator()] for o in overrides if o.is_discrete_sweep()}
    fixed = [x for x in given if not x.startswith(("seed=", "hydra."))]
    plain(configure("train", *fixed, *(f"{key}={values[0]}" for key, values in choices.items())))
    for key, values in choices.items():
        rest = [f"{other}={others[0]}" for other, others in choices.items() if other != key]
        for value in values[1:]:
            cfg = configure("train", *fixed, *rest, f"{key}={value}")
            plain(cfg)
            if "." in key:
                assert OmegaConf.select(cfg, key) == OmegaConf.from_dotlist([f"value={value}"]).value


def test_what_an_agent_of_wandb_runs_composes(configure: Callable[..., DictConfig]) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = OmegaConf.to_container(OmegaConf.load(CONF.parent / "wandb_sweep.yaml"))
    assert (CONF.parent / sweep["program"]).is_file()
    command = create_sweep_command(sweep["command"])
    for position in (0, -1):
        chosen = {key: {"value": parameter["values"][position]} for key, parameter in sweep["parameters"].items()}
        arguments = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
        assert command[:3] == ["${env}", "${interpreter}", "${program}"]
        assert command[-1] == "${args_no_hyphens}"
        cfg = configure("train", *command[3:-1], *arguments)
        plain(cfg)
        assert cfg.logger.wandb._target_ == "protoseg.callbacks.wandb_logger"
        for key, parameter in chosen.items():
            assert OmegaConf.select(cfg, key) == parameter["value"]


def test_the_help_text_lists_what_hydra_lists() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups = ["", *loader.list_groups("")]
        assert {"data", "encoder"} < {*groups}
        for group in groups:
            for kind in (None, ObjectType.CONFIG, ObjectType.GROUP):
                assert _group_options(loader, group, kind) == loader.get_group_options(group, kind)  # type: ignore[arg-type]
