"""The bench of pixel contrasts: its plan, its changed terms, its halves and its table."""

from __future__ import annotations

import json
from csv import DictReader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gain import PLAN, Run, carry_out, planned, table
from benchmarks.gain_terms import VariantContrast, borders
from protoseg.files import write_json
from protoseg.run.config import composed
from protoseg.types import ProtosegError
from tests.conftest import TINY
from tests.losses.contrast_case import MANY, Case, make, space, warm

CHANGED = {name: arm["variant"] for name, arm in PLAN["arms"].items() if "variant" in arm}


def variant(case: Case, **options: Any) -> VariantContrast:
    sizes = {"dim": 5, "queue_length": 4 * MANY, "per_step": MANY, "anchors": MANY, "negatives": 20, "low_rank": 2}
    case.model.encoder, case.model.feature_strides = SimpleNamespace(channels=[6, 6]), [2, 4]
    torch.manual_seed(1)
    term = VariantContrast(**(sizes | {"weight": 0.1, "temperature": 0.5, "reliable": 0.6} | options))
    term.prepare(case.model, space(case.model.head.num_classes))
    return term.double()


def test_runs_of_the_plan_compose(tmp_path: Path) -> None:
    assert len(list(planned([*PLAN["arms"]], ["streets"], [0]))) == len(PLAN["arms"])
    for run in planned(["oracle", "mic", "rare_anchors", "prototype_head_pgpc"], ["streets"], [0]):
        cfg = composed("train", run.words(tmp_path))
        assert cfg.data.batch_size == 4
        assert (cfg.init_from is None) == (run.arm == "oracle")
        assert (run.arm in CHANGED) == str(cfg.contrast.get("_target_", "")).endswith("VariantContrast")
    with pytest.raises(ProtosegError, match="expected one of"):
        list(planned(["nothing"], ["streets"], [0]))
    assert not list(planned(["oracle"], ["rendered"], [0]))


@pytest.mark.parametrize("head", ["parametric", "prototype"])
def test_without_options_it_is_pgpc(head: str) -> None:
    losses = []
    for of in (make, variant):
        case = Case(head=head)
        term = warm(make("pgpc", case) if of is make else variant(case), case)
        torch.manual_seed(2)
        losses.append(term(case.batch()))
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", CHANGED)
def test_every_change_has_another_loss_that_teaches(name: str) -> None:
    options = {key: ["1"] if key == "anchor_classes" else value for key, value in CHANGED[name].items()}
    case = Case()
    before, term = warm(variant(case), case), warm(variant(case, **options), case)
    losses = []
    for each in (before, term):
        torch.manual_seed(2)
        losses.append(each.weight * each(case.batch()))
    assert torch.isfinite(losses[1])
    assert losses[0] != losses[1]
    losses[1].backward()
    assert case.features["mixed"].grad.abs().sum() > 0
    assert (case.features["source"].grad is not None) == (name == "source_anchors")


def test_borders_are_cells_beside_another_class() -> None:
    step = Case().batch()
    label = borders(step)  # of 2 x 6 x 6 cells
    at = step.target.label.masked_fill(step.mixed.pasted, -1)[:, 1::2, 1::2]
    for b in range(2):
        for i in range(6):
            for j in range(6):
                around = at[b, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
                assert label.view(2, 6, 6)[b, i, j] == (around != at[b, i, j]).any()


def test_negatives_are_all_prototypes_of_other_classes() -> None:
    case = Case(classes=3)
    term = warm(variant(case, negatives_from=["prototypes"], num_prototypes=2), case)
    prototypes = F.normalize(torch.randn(3, 2, 5), dim=2)
    rows, exist = term.drawn(prototypes, torch.tensor([[True, True], [True, False], [True, True]]))
    assert exist.tolist() == [
        [False] * 2 + [True, False, True, True],
        [True] * 2 + [False] * 2 + [True] * 2,
        [True] * 3 + [False] * 3,
    ]
    assert torch.equal(rows[0], prototypes.flatten(0, 1))


@pytest.mark.slow
def test_a_run_is_judged_by_halves_and_pulls_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = [word for word in TINY if "num_prototypes" not in word] + [
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
    ]
    monkeypatch.setitem(PLAN, "base", [*tiny, "callbacks.last.every_n_train_steps=2", "threads=1"])
    run = Run("streets", "source_anchors", 0)
    carry_out(run, tmp_path)
    found = json.loads((tmp_path / f"{run.name}.json").read_text())
    assert found["IoU"].keys() == {"student", "teacher"}
    assert found["IoU"]["student"]["choose"] != found["IoU"]["student"]["report"]
    with open(tmp_path / run.name / "logs" / "metrics.csv", encoding="utf-8") as file:
        last = [row for row in DictReader(file) if row["pull/contrast"]][-1]  # at the first no prototype has moved
    assert float(last["pull/contrast"]) > 0
    assert -1 < float(last["angle/contrast"]) < 1
    assert float(last["angle/mixed"]) == pytest.approx(1)
    assert (tmp_path / "streets-source_only-0.json").exists()


def test_table_compares_by_seed(tmp_path: Path) -> None:
    for arm, seed, value in (("daformer", 0, 40.0), ("daformer", 1, 44.0), ("pgpc", 0, 43.0), ("pgpc", 1, 45.0)):
        run, half = Run("camvid", arm, seed), {"Road": value, "Pole": value - 20}
        iou = {network: {"choose": half, "report": half} for network in ("student", "teacher")}
        write_json(tmp_path / f"{run.name}.json", {"run": run._asdict(), "words": [], "seconds": 60, "IoU": iou})
    last = table(tmp_path, "daformer", "report").splitlines()[-1]
    assert last == "| camvid | pgpc | 0, 1 | 34.0 ± 1.4 | 34.0 ± 1.4 | 24.0 ± 1.4 | +2.0 ± 1.4 | +2.0 ± 1.4 | 60 |"
