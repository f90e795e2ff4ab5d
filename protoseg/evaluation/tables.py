"""The report of an evaluation: numbers as JSON, CSV, Markdown and a terminal table, and the confusion matrix."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from torch import Tensor

from protoseg.evaluation.metrics import Scores
from protoseg.evaluation.pictures import CONFUSION, confusions_figure, frequent_classes, short_name
from protoseg.files import write_file
from protoseg.text import Terminal, markdown_table, write_csv
from protoseg.types import LabelSpace

_HEADER = ("class", "IoU (%)", "accuracy (%)", "share of pixels (%)")


def summary(scores: Scores, label_space: LabelSpace) -> dict[str, Any]:
    """The scores as plain values: four numbers, and one entry per class."""
    confusion = scores["confusion"]
    columns = (scores["IoU"], scores["accuracy"], confusion.sum(1), confusion.sum(0))
    names = ("name", "IoU", "accuracy", "true_pixels", "predicted_pixels")
    rows = zip(label_space.classes, *(column.tolist() for column in columns), strict=True)
    means = {name: value for name, value in scores.items() if isinstance(value, float)}
    return means | {"classes": [dict(zip(names, row, strict=True)) for row in rows]}


def write_report(output: Path, result: dict[str, Any], confusion: Tensor, label_space: LabelSpace) -> None:
    """Write the numbers, the tables and the confusion matrix (see ``evaluate``) into ``output``."""
    counts = confusion.numpy()
    write_json(output / "metrics.json", result)
    write_file(output / "table.csv", lambda path: write_csv(path, _csv_rows(result)))
    text = f"{markdown_table(_HEADER, _percent_rows(result))}\n\n{_overall(result)}, {result['num_images']} images\n"
    write_file(output / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    write_file(output / "confusion.npy", lambda path: np.save(path, counts))
    named = [[name, *row] for name, row in zip(label_space.classes, counts.tolist(), strict=True)]
    header = ["true \\ predicted", *label_space.classes]
    write_file(output / "confusion.csv", lambda path: write_csv(path, [header, *named]))
    write_file(output / "confusion.png", confusions_figure({CONFUSION: confusion}, label_space).savefig)


def print_report(result: dict[str, Any], output: Path) -> None:
    """Print the table per class (of more than 255, the most frequent), the four numbers, and where the report lies."""
    *rows, means = _percent_rows(result)
    chosen = frequent_classes(np.array([entry["true_pixels"] for entry in result["classes"]]))
    table = Table(title=f"{result['num_images']} images, {result['images_per_second']:.1f} images/s")
    for i, title in enumerate(_HEADER):
        table.add_column(title, justify="right" if i else "left")
    for name, *numbers in (rows[i] for i in chosen):
        table.add_row(short_name(name), *numbers)
    if len(chosen) < len(rows):
        table.add_row(f"{len(rows) - len(chosen)} more: table.csv")
    table.add_section()
    table.add_row(*means, style="bold")
    terminal = Terminal()
    terminal.print(table)
    terminal.print(_overall(result))
    terminal.say(f"Report: {output}")


def write_json(path: Path, value: Any) -> None:
    """Write plain values as JSON; NaN becomes null."""
    text = json.dumps(without_nan(value), indent=2, allow_nan=False)
    write_file(path, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))


def without_nan(value: Any) -> Any:
    """The same value with None for NaN: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _csv_rows(result: dict[str, Any]) -> list[list[object]]:
    """Numbers in 0 to 1; an empty cell where there is nothing to count."""
    result, columns = without_nan(result), ["name", "IoU", "accuracy", "true_pixels"]
    rows = [[entry[column] for column in columns] for entry in result["classes"]]
    means = ["mean", result["mIoU"], result["mean_accuracy"], sum(row[3] for row in rows)]
    return [["class", *columns[1:]], *rows, means]


def _percent_rows(result: dict[str, Any]) -> list[list[str]]:
    """Class, IoU, accuracy and share of the true pixels, in percent, the means last."""
    pixels = sum(entry["true_pixels"] for entry in result["classes"]) or math.nan
    rows = [[e["name"], e["IoU"], e["accuracy"], e["true_pixels"] / pixels] for e in result["classes"]]
    rows.append([f"mean of {len(result['classes_in_means'])}", result["mIoU"], result["mean_accuracy"], math.nan])
    shown = [[name, *map(_percent, numbers)] for name, *numbers in rows]
    return [[*row[:3], "not labelled here"] if row[0] in result["classes_not_labelled"] else row for row in shown]


def _percent(number: float) -> str:
    return "–" if math.isnan(number) else f"{100 * number:.2f}"


def _overall(result: dict[str, Any]) -> str:
    subsets = [key for key in result if key.startswith("mIoU_")]
    keys = ("mIoU", *subsets, "pixel_accuracy", "mean_accuracy", "fw_IoU")
    return " · ".join(f"{key} {_percent(result[key])} %" for key in keys)
