"""``protoseg COMMAND``: one door, and the earlier ones."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from protoseg import __version__, cli
from protoseg.cli.main import COMMANDS, main
from protoseg.run.config import named

ROOT = Path(__file__).parents[2]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said and text in said for name, text in COMMANDS.items())
    main(["--version"])
    assert capsys.readouterr().out == f"protoseg {__version__}\n"


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evalute", "x.ckpt"])
    assert "Did you mean 'evaluate'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("train", "evaluate", "predict", "report")])
def test_tools_answer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"usage: protoseg {'data render' if name == 'render' else name}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["report", "a.ckpt", "split=val"], ["ckpt_path=a.ckpt", "split=val", "report=true"]),
        (["predict", "device=cpu", "r/a=1.ckpt", "photos"],
         ["device=cpu", 'ckpt_path="r/a=1.ckpt"', "images=photos", "mode=predict"]),
        (["evaluate", "ckpt_path=a.ckpt"], ["ckpt_path=a.ckpt"]),
        (["train", "-m", "seed=0,1"], ["-m", "seed=0,1"]),
    ],
)  # fmt: skip
def test_what_a_place_means(words: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["protoseg"])
    for door in ("train", "evaluate"):
        monkeypatch.setattr(cli, door, lambda: seen.append(sys.argv[1:]))
    main(words)
    assert seen == [expected]


def test_more_words_than_places_are_left_to_hydra() -> None:
    assert named(["a.ckpt", "b.ckpt"], ("ckpt_path",)) == ["ckpt_path=a.ckpt", "b.ckpt"]


@pytest.mark.parametrize("door", ["protoseg.classes", "protoseg.analysis"])
def test_earlier_doors(door: str) -> None:
    """Each tool was a module to call before."""
    ran = subprocess.run([sys.executable, "-m", door, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "usage:" in ran.stdout


def test_every_tool_has_its_module() -> None:
    for name in set(COMMANDS) - {"train", "evaluate", "predict", "report", "render"}:
        assert callable(import_module(f"protoseg.cli.{name}").main)


@pytest.mark.parametrize("tool", ["data", "teach", "analyse", "export", "main"])
def test_help_does_not_wait_for_torch(tool: str) -> None:
    code = (
        f"import sys; from protoseg.cli.{tool} import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'torch', 'cv2', 'numpy'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
