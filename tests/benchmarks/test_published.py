"""Published files against their figures: the golden networks on the built-in scenes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import published
from tests.convert.conftest import published_state


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["daformer_mit_b0", "protoseg_hrnet_w48"])
def test_a_rehearsal(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "files"
    (files / "gta2cs_daformer_s0").mkdir(parents=True)
    torch.save({"state_dict": published_state(kind)}, files / "gta2cs_daformer_s0" / "latest.pth")
    (files / "broken.pth").write_bytes(b"PK not a checkpoint")
    rows = list(published.judge(files, tmp_path / "data", images=2))
    assert [(row.file, row.data) for row in rows] == [("broken.pth", "–"), ("gta2cs_daformer_s0/latest.pth", "streets")]
    assert rows[0].got is None
    assert "broken.pth" in rows[0].note
    assert 0 <= rows[1].got < 30, "random weights"
    assert rows[1].expected is None, "the published figure is of Cityscapes"
    capsys.readouterr()


def test_the_table_has_expected_got_and_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(
        published, "judge", lambda *_: [published.Judged("a.pth", "cityscapes", 68.85, 68.8, "its README")]
    )
    published.main([str(tmp_path), str(tmp_path)])
    out = capsys.readouterr().out
    assert [word in out for word in ("68.85", "68.80", "-0.05", "its README")] == [True] * 4


def test_a_file_is_told_by_the_name_it_came_with() -> None:
    path = Path("work_dirs/211108_1622_gta2cs_daformer_s0_7f24c/latest.pth")
    assert published.expected(path, "cityscapes")[0] == 68.85
    assert published.expected(path, "acdc")[0] is None
    assert published.expected(Path("hrnet_proto_80k.pth"), "cityscapes")[0] == 80.1
