"""``protoseg COMMAND``: one door, and the earlier ones."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

from protoseg import __version__, cli
from protoseg.cli.main import COMMANDS, main
from protoseg.run.config import named

ROOT = Path(__file__).parents[2]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said and entry["summary"] in said for name, entry in COMMANDS.items())
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
        (["train", "-m", "seed=0,1"], ["seed=0,1", "-m"]),
        (["train", "data=camvid", "--cfg", "job", "seed=1"], ["data=camvid", "seed=1", "--cfg", "job"]),
        (["evaluate", "-c", "all", "a.ckpt"], ["ckpt_path=a.ckpt", "-c", "all"]),
        (["train", "data=camvid", "--info"], ["data=camvid", "--info"]),
    ],
)  # fmt: skip
def test_what_a_place_means(words: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["protoseg"])
    monkeypatch.setattr(cli, "_run", lambda *_: seen.append(sys.argv[1:]))
    main(words)
    assert seen == [expected]


def test_more_words_than_places_are_left_to_hydra() -> None:
    assert named(["a.ckpt", "b.ckpt"], ("ckpt_path",)) == ["ckpt_path=a.ckpt", "b.ckpt"]


def test_a_path_may_look_like_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r u=n").mkdir()
    Path("r u=n/a.ckpt").touch()
    Path("seed=1").mkdir()
    assert named(["r u=n/a.ckpt", "seed=1"], ("ckpt_path",)) == ['ckpt_path="r u=n/a.ckpt"', "seed=1"]


TOOLS = [(name, entry, of) for name, entry in COMMANDS.items() for of in entry.get("commands", {"": entry}).items()]


@pytest.mark.parametrize(("name", "entry", "of"), [tool for tool in TOOLS if "run" in tool[1]])
def test_a_function_takes_the_options_of_its_command(name: str, entry: dict, of: tuple[str, dict]) -> None:
    command, own = of
    function = resolve_name(own.get("run", f"{entry['run']}:{command}"))
    options = {key: entry["options"][key] for key in own.get("uses", ())} | own.get("options", {})
    given = {option.get("dest", key.lstrip("-").replace("-", "_")) for key, option in options.items()}
    given -= {"as_json"}  # of the tool itself
    if "places" in entry and "overrides" in given:
        given = given - {"overrides", "checkpoint"} | {"cfg"}
    inspect.signature(function).bind(**dict.fromkeys(given))


@pytest.mark.parametrize("words", [["data"], ["teach"], ["analyse"], ["export"], ["data", "info"], []])
def test_help_does_not_wait_for_torch(words: list[str]) -> None:
    code = (
        "import sys; from protoseg.cli.main import main\n"
        f"try: main([*{words}, '--help'])\n"
        "finally: assert not {'torch', 'cv2', 'numpy'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "none.ckpt"], "no file at none.ckpt"),
        (["train", "resume=none.ckpt"], "no file at none.ckpt"),
        (["export", "none.ckpt", "a.onnx"], "no file at none.ckpt"),
        (["teach", "show", "none.ckpt"], "no file at none.ckpt"),
        (["analyse", "uncertainty", "none.ckpt"], "no file at none.ckpt"),
        (["data", "info", "camvd"], "unknown data 'camvd'. Did you mean 'camvid' or"),
    ],
)
def test_a_wrong_name_is_told_before_torch_is_imported(words: list[str], message: str, tmp_path: Path) -> None:
    code = (
        "import sys; from protoseg.cli.main import main\n"
        f"try: main({words})\n"
        "finally: assert 'torch' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert message in result.stderr
    assert "Error" not in result.stderr


def test_help_prints_the_command_that_was_used(tmp_path: Path) -> None:
    for words, command in (
        (["-m", "protoseg", "train"], "protoseg train"),
        ([str(ROOT / "train.py")], "python train.py"),
    ):
        result = subprocess.run(
            [sys.executable, *words, "--help"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert f"  {command} experiment=camvid_prototype " in result.stdout


def test_a_config_that_ours_would_hide_is_refused(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    theirs = tmp_path / "method" / "dacs.yaml"
    theirs.write_text("threshold: 0.5\n")
    (tmp_path / "method" / "supervised.yaml").write_text("not chosen\n")
    command = [sys.executable, str(ROOT / "train.py"), f"--config-dir={tmp_path}", "method=dacs"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == f"error: {theirs}: a file of ours of that name hides it; give it another name\n"
