"""Names as data: whatever characters they have, they are shown, written and read back as they are."""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from rich.table import Table

from protoseg.evaluation.pictures import empty_figure, figure_picture
from protoseg.files import remove_partial_files, with_ending, write_file
from protoseg.job_records import Job, write_job
from protoseg.text import (
    Terminal,
    command,
    figure_text,
    markdown_table,
    markdown_text,
    override,
    program,
    say,
    tables_as_json,
    visible,
    write_csv,
)
from protoseg.types import ProtosegError

HOSTILE = (
    "[red]x[/]",
    "[/]",
    ":car:",
    "a\nb",
    "\x1b[31mred",
    "caf\udce9",
    "größe 数据",
    "=1+1",
    "a|b`c`",
    "$x^$",
    "_a_",
)


def test_one_visible_line() -> None:
    assert visible("größe [x] 数据") == "größe [x] 数据"
    assert visible("a\nb\t\x1b[0m\udce9\u202e") == r"a\nb\t\x1b[0m\udce9\u202e"
    assert str(ProtosegError("no file a\nb\udce9")) == r"no file a\nb\udce9"


@pytest.mark.parametrize("name", HOSTILE)
def test_terminal_prints_names_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    Terminal().print(table)
    say(f"Folder: {name}/{'x' * 200}")
    printed = capsys.readouterr().out
    assert printed.count(visible(name)) == 4
    assert "\x1b" not in printed
    assert printed.endswith(f"Folder: {visible(name)}/{'x' * 200}\n")


def test_terminal_of_another_encoding() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    terminal = Terminal()
    terminal.file = file
    terminal.say("größe 数")
    file.seek(0)
    assert file.read() == "größe \\u6570\n"


def test_markdown() -> None:
    assert markdown_text("traffic_light (2)") == "traffic_light (2)"
    assert markdown_text("_a_|`b`<i>[c](d)\n*e*$f$") == r"\_a\_\|\`b\`\<i\>\[c\](d)\\n\*e\*\$f\$"
    lines = markdown_table(("class", "IoU"), [("a|b\nc", 1.5)]).splitlines()
    assert lines == ["| class | IoU |", "| --- | ---: |", r"| a\|b\\nc | 1.5 |"]


def test_csv_computes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    names = ["=1+1", "+x", "-x", "@x", "\tx", "a\nb", 'a,"b"', "a\udce9", "car"]
    write_csv(path, [names, [-0.5, "-0.5", "1e5"]])
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["'=1+1", "'+x", "'-x", "'@x", "'\tx", "a\nb", 'a,"b"', "a\\udce9", "car"]
    assert rows[1] == ["-0.5", "-0.5", "1e5"]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_figures_take_no_name_for_a_formula() -> None:
    figure = empty_figure(3, 3)
    axes = figure.add_subplot()
    for name in HOSTILE:
        axes.plot([0, 1], label=figure_text(name))
    legend = axes.legend()
    figure_picture(figure)
    assert len(legend.get_texts()) == len(HOSTILE)


PLAIN = "runs/streets_prototype/2025-01-31_12-00-00/checkpoints/best.ckpt"


def read(words: str) -> str:
    value = OverridesParser.create().parse_override(words).value()
    return OmegaConf.create({"key": value}).key


def test_plain_overrides_stay_plain() -> None:
    for path in (PLAIN, f"/home/{PLAIN}", "../a-b+c@d%.ckpt", "best.ckpt"):
        assert command("python", "evaluate.py", override("ckpt_path", path)) == f"python evaluate.py ckpt_path={path}"


def test_a_command_works_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert program("evaluate", "ckpt_path=a b") == "protoseg evaluate 'ckpt_path=a b'"
    (tmp_path / "evaluate.py").touch()
    assert program("evaluate", "x=1") == "python evaluate.py x=1"


def test_overrides_are_read_as_they_were_written() -> None:
    # Also what Hydra would read as a number, a list, a sweep, another value or an interpolation.
    values = ["", "null", "True", "123", "1e5", ".5", "inf", "lr=0.1", "a b", "a,b", "größe", "~/x", "${x}", "\\${x}"]
    draw = random.Random(0)
    values += [
        "".join(draw.choices("ab/.=\\'\"${}[](),:;~ \n#é数\udce9|%!0", k=draw.randint(1, 12))) for _ in range(300)
    ]
    for value in values:
        assert read(override("key", value)) == value
        assert isinstance(read(override("key", value)), str)


@pytest.mark.parametrize("name", ["lr=0.1", "a b", "it's", '"', "$HOME `ls`", "größe", "a\nb", "caf\udce9\\'"])
def test_commands_can_be_pasted(name: str) -> None:
    words = ["printf", "%s", override("ckpt_path", name)]
    line = command(*words)
    assert line.isprintable()
    printed = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert read(printed.decode(errors="surrogateescape")) == name


LONG = "数" * 83 + "ab"  # 251 bytes; with .png the longest name there may be


def test_long_names(tmp_path: Path) -> None:
    path = with_ending(tmp_path / LONG, ".png")
    assert path.name == f"{LONG}.png"
    write_file(path, lambda partial: partial.write_text(partial.suffix))
    assert path.read_text() == ".png"
    other, third = (with_ending(tmp_path / f"{LONG}_{copy}", ".png") for copy in (2, 3))
    assert other != third
    for name in (other, third):
        assert len(name.name.encode()) <= 255
        write_file(name, lambda partial: partial.write_text("x"))
    assert other == with_ending(tmp_path / f"{LONG}_2", ".png")  # found again

    left: list[Path] = []
    write_file(path, lambda partial: (left.append(partial), partial.write_text("x")))
    left[0].write_text("half")  # of a run that was killed
    remove_partial_files(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([path, other, third])


def test_records_of_a_sweep_keep_any_name(tmp_path: Path) -> None:
    write_job(Job(0, ("data.root=caf\udce9", "a=größe"), tmp_path))
    text = (tmp_path / "job.json").read_text(encoding="utf-8")
    assert json.loads(text)["overrides"] == ["data.root=caf\udce9", "a=größe"]
    assert "größe" in text


def test_a_table_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with tables_as_json():
        rows = [("x", "nan", "12,345", "0.50"), ("x", "[b]", "nan", "–"), ("x", "7", "", "1, 2")]
        Terminal().table("a\nb", ("", "class", "pixels", "share"), rows, left=(0, 1))
        say("beside it")
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {
        "title": "a\nb",
        "rows": [
            {"class": "nan", "pixels": 12345, "share": 0.5},
            {"class": "[b]", "pixels": None, "share": None},
            {"class": "7", "pixels": None, "share": "1, 2"},
        ],
    }
    assert shown.err == "beside it\n"
    say("after it")
    assert capsys.readouterr().out == "after it\n"
