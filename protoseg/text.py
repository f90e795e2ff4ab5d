"""Names of files, folders and classes where they are shown, written or typed again: data, never markup or code."""

import csv
import json
import math
import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import rich
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

Row = Sequence[str | Text]
progress = partial(track, transient=True, console=Console(stderr=True))
# What Hydra reads as it stands: a text, no number, no null, no list.
_PLAIN_VALUE = re.compile(r"(?!(?:null|true|false|nan|inf)$)(?:\.{0,2}/|[a-z_])[\w./@%+-]*", re.ASCII | re.IGNORECASE)
# An underscore inside a word is none of Markdown's marks.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])")


def visible(text: object) -> str:
    r"""One line without control characters: what ``repr`` escapes is escaped (``\n``, ``\x1b``, bytes not UTF-8)."""
    line = str(text)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class Terminal(Console):
    """A console that prints text as it is, tables included; style it with ``style=`` or ``rich.text.Text``."""

    as_json = False  # see :func:`tables_as_json`

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr or self.as_json, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        # A terminal of another encoding than UTF-8 shows the rest escaped, too.
        shown = visible(text).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return super().render_str(shown, **options)

    def say(self, message: str) -> None:
        """Print one line that is not broken at the width of the terminal."""
        self.print(message, soft_wrap=True)

    def table(self, title: str, header: Sequence[str], rows: Iterable[Row], left: Collection[int] = (0,)) -> None:
        """Print a table; the columns ``left`` are of words, the others of numbers; a header of no names is left out."""
        if self.as_json:
            plain = ([str(x) if i in left else _number(str(x)) for i, x in enumerate(row)] for row in rows)
            found = [{name: x for name, x in zip(header, row, strict=True) if name} for row in plain]
            return print(json.dumps({"title": title, "rows": found}))
        table = Table(title=title, show_header=any(header))
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i in left else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.print(table)


@contextmanager
def tables_as_json() -> Iterator[None]:
    """Meanwhile a table is a line of JSON on standard output, and all other words go to standard error."""
    Terminal.as_json = True
    rich.reconfigure(stderr=True)  # progress bars
    try:
        yield
    finally:
        Terminal.as_json = False
        rich.reconfigure()


def _number(cell: str) -> float | str | None:
    """A cell as a number; None where it is empty or a dash, and as it stands where it says more than a number."""
    if (number := number_in(cell.replace(",", ""))) is None:  # of thousands
        return cell if cell not in ("", "–") else None
    return number if math.isfinite(number) else None


def number_in(text: str) -> float | None:
    """The number that a text says, perhaps NaN or infinity; None where it says something else."""
    with suppress(ValueError):
        return float(text)
    return None


def say(message: str, stderr: bool = False) -> None:
    """Print one line; see :class:`Terminal`."""
    Terminal(stderr).say(message)


def markdown_text(text: object) -> str:
    """Text as it is inside a line of Markdown, or a cell of a table."""
    return _MARKDOWN.sub(r"\\\g<0>", visible(text))


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """A table in Markdown; the first ``left`` columns are names, the others numbers."""
    lines = [[markdown_text(cell) for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---" if i < left else "---:" for i in range(len(header))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV in UTF-8. A name that a spreadsheet would compute begins with ``'``."""
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([_inert(cell) for cell in row] for row in rows)


def _inert(cell: object) -> object:
    computed = isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return f"'{cell}" if computed and number_in(str(cell)) is None else cell


def figure_text(text: object) -> str:
    """Text for a figure of matplotlib, which takes ``$`` for formulas and leaves ``_…`` out of legends."""
    line = visible(text).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def override(key: str, value: object) -> str:
    """``KEY=VALUE`` as Hydra reads it, in quotes where the value needs them."""
    from hydra.core.override_parser.types import Quote, QuotedString

    text = str(value)
    if _PLAIN_VALUE.fullmatch(text):
        return f"{key}={text}"
    # OmegaConf would look up ``${…}``.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return f"{key}={QuotedString(text, Quote.double).with_quotes()}"


def command(*words: str) -> str:
    """Words of a command line as a shell reads them, in one line."""
    return " ".join(shlex.quote(word) if word.isprintable() else _bash(word) for word in words)


def program(name: str, *words: str) -> str:
    """The command of train or evaluate that works where one is: ``python NAME.py …`` in a checkout."""
    return command(*(("python", f"{name}.py") if Path(f"{name}.py").is_file() else ("protoseg", name)), *words)


def _bash(word: str) -> str:
    r"""``$'…\012…'``, which shells other than bash and zsh may not know."""
    plain = (c if c.isprintable() and c not in "\\'" else "".join(f"\\{b:03o}" for b in os.fsencode(c)) for c in word)
    return f"$'{''.join(plain)}'"
