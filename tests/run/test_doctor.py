"""``protoseg doctor``: what it finds, as a table and as JSON; and the script for bash."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from protoseg.cli.main import COMMANDS, main
from protoseg.run import doctor


def test_what_is_slow_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(doctor, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(doctor, "keep_freed_memory", lambda: False)
    torch.set_num_threads(2)
    main(["doctor", "--json"])
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["torch"]["found"] == torch.__version__.partition("+")[0]
    assert "0.5 of them granted, 2 threads" in rows["CPU"]["found"]
    assert rows["CPU"]["what to do"].endswith("threads=1")
    assert "twice as long" in rows["freed memory"]["what to do"]
    main(["doctor"])
    assert "threads=1" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="the script is for bash")
def test_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion"])
    script = capsys.readouterr().out

    def replies(*words: str) -> list[str]:
        asked = f"COMP_WORDS=(protoseg {' '.join(words)}); COMP_CWORD={len(words)}; _protoseg; echo ${{COMPREPLY[@]}}"
        ran = subprocess.run(["bash", "-c", script + asked], capture_output=True, text=True)
        assert ran.stderr == ""
        return ran.stdout.split()

    assert replies("e") == ["evaluate", "export"]
    assert replies("data", "s") == ["show", "stats"]
    assert replies("evaluate", "s") == []
    assert replies("''") == list(COMMANDS)
    for name, entry in COMMANDS.items():
        assert replies(name, "''") == list(entry.get("commands", ()))
