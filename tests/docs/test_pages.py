"""README.md and docs/: links lead somewhere, commands are understood, names of the code exist."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from protoseg import cli
from protoseg.cli.main import COMMANDS, main
from protoseg.run.config import check_ranges
from protoseg.run.resuming import RULES, SAID, SILENT

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "protoseg"
README, INDEX = ROOT / "README.md", ROOT / "docs" / "index.md"
PAGES = [README, ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HYDRA = {"train": "train", "evaluate": "evaluate", "predict": "evaluate", "report": "evaluate"}


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def anchors(page: Path) -> set[str]:
    """What ``page.md#…`` may name: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_and_picture_exists(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for target in (target for target in targets if not target.startswith("https://")):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_the_readme_is_one_page() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 160


def test_the_index_lists_every_page() -> None:
    text = INDEX.read_text()
    assert [page.name for page in INDEX.parent.glob("*.md") if page != INDEX and f"]({page.name})" not in text] == []


def names_in(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What the statements of a file or class define."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                found[target.id] = node
    return found


def defines(file: Path, name: str) -> bool:
    """Whether ``Class.method``, a function, or a constant is written in this file."""
    node: ast.AST = ast.parse(file.read_text())
    for part in name.split("."):
        found = names_in(getattr(node, "body", []))
        if part not in found:
            return False
        node = found[part]
    return True


def is_there(name: str) -> bool:
    """Whether ``protoseg.x.y.name`` is a file, a folder, or written (or handed on) in one."""
    *folders, last = name.split(".")[1:]
    place = PACKAGE.joinpath(*folders)
    if place.joinpath(last).is_dir() or place.joinpath(f"{last}.py").is_file():
        return True
    files = [place / "__init__.py", place / "__init__.pyi"] if place.is_dir() else [place.with_suffix(".py")]
    texts = [file.read_text() for file in files if file.is_file()]
    return any(re.search(rf"\b{last}\b", text) for text in texts)


def test_every_name_of_the_code_exists(page: Path) -> None:
    code = re.findall(r"`([^`\n]+)`", page.read_text())
    in_files = [match for text in code if (match := re.fullmatch(r"([\w/]+\.py): ([\w.]+)", text))]
    missing = [m.group() for m in in_files if not defines(PACKAGE / m[1].removeprefix("protoseg/"), m[2])]
    dotted = {name for text in code for name in re.findall(r"\bprotoseg(?:\.\w+)+", text)}
    paths = [text for text in code if re.fullmatch(r"(?:protoseg|tests|conf|examples|benchmarks)/[a-z_\d./]+", text)]
    missing += [name for name in sorted(dotted) if not is_there(name)]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_a_name_that_is_gone_is_found() -> None:
    assert defines(PACKAGE / "nn" / "heads.py", "PrototypeHead.forward")
    assert defines(PACKAGE / "run" / "resuming.py", "RULES")
    assert not defines(PACKAGE / "nn" / "heads.py", "PrototypeHead.backward")
    assert not is_there("protoseg.nn.heads.PrototypeHat")
    assert is_there("protoseg.load")


def test_the_walk_names_functions_all_along() -> None:
    assert len(re.findall(r"`[\w/]+\.py: [\w.]+`", (ROOT / "docs" / "batch.md").read_text())) > 60


def commands_in(page: Path) -> list[str]:
    """Commands of ours in code blocks and between backticks; a comment after them is left out."""
    text = page.read_text()
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", rest)
    start = r"(?:PYTHONPATH=\S+ )?(?:protoseg|python (?:train|evaluate)\.py) (?!COMMAND)"
    return [line for line in lines if re.match(start, line)]


def words_of(line: str) -> list[str]:
    """``[command, word, …]`` of ``protoseg`` as a shell splits it; an ellipsis stands for more of the same."""
    words = [word for word in shlex.split(line, comments=True) if not word.startswith("PYTHONPATH=") and word != "…"]
    if words[0] == "python":
        return [words[1].removesuffix(".py"), *words[2:]]
    return words[1:]


ANY = re.compile(r"seed=.*|threads=.*|hydra\.run\.dir=.*")
"""What a command may have beside another one, and need not be tried again with."""
LINES = {frozenset(w for w in words_of(line) if not ANY.fullmatch(w)): line for p in PAGES for line in commands_in(p)}
LINES = sorted(LINES.values())
NAMES = [line for line in LINES if re.fullmatch(r"(protoseg|python)( [a-z.]+)+( …)?", line) and " train" not in line]
"""Commands that a sentence names, without what they work on."""
SETTINGS = [line for line in LINES if line not in NAMES and words_of(line)[0] in HYDRA]
TOOLS = [line for line in LINES if line not in NAMES and line not in SETTINGS]


@pytest.mark.parametrize("line", SETTINGS)
def test_a_command_composes(line: str, configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(cli, "_run", lambda *_: seen.append(sys.argv[1:]))
    monkeypatch.setattr(cli, "report", lambda *_: [])
    monkeypatch.setattr(sys, "argv", ["protoseg"])
    main(words_of(line))
    command, words = words_of(line)[0], seen[0]
    options = get_args_parser().parse_args(words)  # ends the test where it understands something else
    search = [f"hydra.searchpath=[file://{ROOT / options.config_dir}]"] if options.config_dir else []
    said = ["seed=0" if word == "seed=S" else word for word in options.overrides]
    cfg = configure(HYDRA[command], *map(first_of, said), *search)
    OmegaConf.to_container(cfg, resolve=True)
    check_ranges(cfg)


def first_of(text: str) -> str:
    """An override, of a sweep its first value."""
    override = OverridesParser.create().parse_overrides([text])[0]
    return f"{override.key_or_group}={next(override.sweep_string_iterator())}" if override.is_sweep_override() else text


@pytest.mark.parametrize("line", TOOLS)
def test_a_tool_understands(line: str, configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    command, *words = words_of(line)
    monkeypatch.setattr("protoseg.cli.main.run_with_clear_errors", lambda *_: None)
    main([command, *words])  # argparse ends the test where it understands something else
    if values := [word for word in words if re.match(r"[\w.]+=", word)]:
        data = [f"data={words[1]}"] if command == "data" else []
        configure("train" if data or command == "convert" else "evaluate", *data, *values)


@pytest.mark.parametrize("line", NAMES)
def test_a_command_that_is_named_is_there(line: str) -> None:
    command, *words = words_of(line)
    assert command in COMMANDS
    if command not in HYDRA:
        with pytest.raises(SystemExit, match=r"^0$"):
            main([command, *words, "--help"])


def test_the_rules_of_resuming_are_those_of_the_code() -> None:
    said = {SAID: "taken over, and said", SILENT: "belongs to the call, not to the run"}
    rules = [
        f"| {', '.join(f'`{key}`' for key in keys.split())} | {said.get(rule, f'refused: {rule}')} |"
        for keys, rule in RULES
    ]
    page = (ROOT / "docs" / "resuming.md").read_text()
    table = page.split("| settings | a change is |\n|---|---|\n")[1].split("\n\n")[0]
    assert table.splitlines() == rules


def test_every_block_of_code_ends(page: Path) -> None:
    """Else all that follows is shown as code, up to the next block."""
    inside = False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            assert not inside or line == "```", line
            inside = not inside
    assert not inside
