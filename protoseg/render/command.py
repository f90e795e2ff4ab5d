"""What ``protoseg render`` does."""

import os
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from protoseg.render.writing import RenderSettings, render_dataset
from protoseg.text import command, override, say


def render(
    out: Path, count: int, style: str, size: tuple[int, int], seed: int, labels: str, workers: int | None
) -> None:
    """Draw labelled street scenes of ``size`` (width, height)."""
    settings = RenderSettings(style, *size, seed, labels)
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=count)
        for done in render_dataset(out, count, settings, (os.cpu_count() or 1) if workers is None else workers):
            progress.update(task, completed=done)
    say(f"{count} pictures and label maps in {out}: train with {command('data=folder', override('data.root', out))}")
