"""Choosing a checkpoint without labels: what is measured of a state, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import choosing
from benchmarks.choosing import SIGNS, entropy, state_signs, table
from protoseg.run.train import run_training
from tests.conftest import TINY


def test_entropy_is_1_where_nothing_is_known_and_0_where_all_is() -> None:
    known = torch.nn.functional.one_hot(torch.tensor([1, 2]), 4).T.float()
    torch.testing.assert_close(entropy(torch.full((4, 2), 0.25)), torch.ones(2))
    torch.testing.assert_close(entropy(known), torch.zeros(2))


def test_the_table_tells_what_a_choice_costs() -> None:
    def state(step: int, miou: float, **signs: float) -> dict[str, float]:
        return dict.fromkeys(SIGNS, 0.0) | {"last": float(step), "mIoU": miou} | signs

    runs = [
        [state(50, 40.0, agreement=0.9), state(100, 44.0, source=1.0)],
        [state(50, 50.0, agreement=0.8), state(100, 49.5)],
    ]
    lines = table(runs).splitlines()
    assert "| source | 0.0 | 0.0 | 2 of 2 | 6.0 |" in lines
    assert "| agreement | 2.0 | 4.0 | 1 of 2 | 10.0 |" in lines
    assert "| last | 0.2 | 0.5 | 2 of 2 | – |" in lines


def test_trainings_that_differ_in_a_setting_and_a_target_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"a": {"agreement": 0.91, "mIoU": 40.0}, "b": {"agreement": 0.9, "mIoU": 42.0}, "step=7": {"source": 30.0}}
    zeros = dict.fromkeys(SIGNS, 0.0)
    monkeypatch.setattr(choosing, "state_signs", lambda path: zeros | found[path.stem])
    (tmp_path / "step=7.ckpt").touch()

    def printed(*where: str) -> str:
        monkeypatch.setattr("sys.argv", ["choosing", *where])
        choosing.main()
        return capsys.readouterr().out

    compared = printed("a.ckpt", "b.ckpt")
    assert "| a.ckpt | 0 | 0 | 0 | 0.91 | 0 | 0 | 40 |" in compared
    assert "| agreement | 2.0 | 2.0 | 0 of 1 | 2.0 |" in compared
    assert "\n| last |" not in compared  # no setting comes last
    alone = printed(str(tmp_path))
    assert f"| {tmp_path}/step=7.ckpt | 30 | 0 |" in alone
    assert "chosen by" not in alone


@pytest.mark.slow
@pytest.mark.parametrize("judged", [True, False])
def test_signs_of_a_state(judged: bool, configure, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = [word for word in TINY if "num_prototypes" not in word]
    words += [] if judged else ["data.target.val_split=null"]
    cfg = configure("train", "experiment=small_daformer", *words, "trainer.max_steps=1", output=tmp_path)
    run_training(cfg)
    state = tmp_path / "checkpoints" / "step=1.ckpt"
    (tmp_path / "checkpoints" / "last.ckpt").rename(state)
    signs = state_signs(state)
    assert signs.keys() == {*SIGNS, *(["mIoU"] if judged else [])}
    assert signs["last"] == 1
    assert all(0 <= signs[name] <= 1 for name in ("certainty", "information", "agreement", "reliable"))
    assert signs["information"] <= signs["certainty"]
    assert 0 <= signs.get("mIoU", 0) <= 100
