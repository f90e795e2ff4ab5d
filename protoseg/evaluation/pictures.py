"""Pictures of labels, predictions, errors, confusions: uint8 RGB ``h w 3`` or files; matplotlib only where needed."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from protoseg.data.label_spaces import file_ignored
from protoseg.text import figure_text, visible
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Picture = npt.NDArray[np.uint8]
Color = tuple[int, int, int]
Tile = tuple[str, Picture, Color | None]  # its title, and the colour of the patch beside that

CONFUSION = "Confusion: % of each true class's pixels"  # the title of one matrix
MANY_CLASSES = 40  # above it a confusion has no cell text, and a panel's legend only the classes it shows
DIM = 0.35  # brightness of the photo under ignored pixels
WRONG = (230, 40, 60)
INK, PAPER, FRAME = (40, 40, 40), (255, 255, 255), (170, 170, 170)
TILE_WIDTH, MARGIN = (280, 640), 8  # a panel's pictures are enlarged or reduced into this range of widths
typeface = ImageFont.load_default  # of all pictures, by its size in pixels
_PIECE = 2**18  # pixels mixed at once: a large photo in fp64 takes gigabytes


def colorize(label: Tensor, label_space: LabelSpace) -> Picture:
    """Class ids in their colours, ``h w`` to ``h w 3``; raises ProtosegError for unknown ids."""
    return np.array([*label_space.colors, label_space.ignored_color], dtype=np.uint8)[_ids(label, label_space)]


def overlay(image: Tensor, label: Tensor, label_space: LabelSpace, alpha: float = 0.55) -> Picture:
    """Class colours of strength ``alpha`` (0 to 1) over the photo; ignored pixels show the photo, dimmed.

    The photo is uint8 (or float in 0 to 1) RGB, ``3 h w``; labels are ``h w``, class ids or ``IGNORE_INDEX``.
    """
    photo = as_picture(image, label_space.shown)
    picture = np.empty_like(photo)
    for rows in _strips(label.shape):
        mixed = (1 - alpha) * photo[rows] + alpha * colorize(label[rows], label_space)
        ignored = label[rows].cpu().numpy() == IGNORE_INDEX
        picture[rows] = np.where(ignored[..., None], DIM * photo[rows], mixed).round()
    return picture


def _strips(shape: Sequence[int]) -> list[slice]:
    """The rows of a map ``h w``, of about ``_PIECE`` pixels each."""
    step = max(1, _PIECE // shape[1])
    return [slice(first, first + step) for first in range(0, shape[0], step)]


def error_map(image: Tensor, truth: Tensor, prediction: Tensor, label_space: LabelSpace) -> Picture:
    """Wrong pixels in red on a pale grey photo, ignored pixels dark; arguments as of ``overlay``, ``h w 3``."""
    return marked(rgb(image, label_space.shown), truth == IGNORE_INDEX, {WRONG: truth != prediction})


def marked(image: Tensor, ignored: Tensor, marks: Mapping[Color, Tensor]) -> Picture:
    """Pixels (bool ``h w``) in some colours on a pale grey photo, ``h w 3``; ignored pixels are dark."""
    grey = as_picture(image).mean(2, keepdims=True).repeat(3, 2)
    picture = 0.35 * grey + 0.65 * 255
    for color, pixels in marks.items():
        picture = np.where(pixels.cpu().numpy()[..., None], 0.25 * grey + 0.75 * np.array(color), picture)
    return np.where(ignored.cpu().numpy()[..., None], DIM * grey, picture).round().astype(np.uint8)


def label_png(label: Tensor, label_space: LabelSpace, path: Path) -> None:
    """Write class ids as an indexed PNG: the pixel values are the ids, and any viewer shows the class colours.

    Ignored pixels are 255. Where there are more than 255 classes, a grey PNG of 16 bits, ignored pixels 65535.
    Read the ids back with ``np.array(Image.open(path))``, without ``convert``. Raises ProtosegError for unknown ids.
    """
    ignored = file_ignored(label_space.num_classes)
    values = np.empty(label.shape, np.min_scalar_type(ignored))
    for rows in _strips(label.shape):
        ids = _ids(label[rows], label_space)
        values[rows] = np.where(ids == label_space.num_classes, ignored, ids)
    picture = Image.fromarray(values)
    if picture.mode == "L":
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[: label_space.num_classes], palette[ignored] = label_space.colors, label_space.ignored_color
        picture.putpalette(palette.tobytes())
    picture.save(path, format="PNG")


def legend(label_space: LabelSpace, width: int, shown: Collection[int]) -> Picture:
    """A strip of colour patches with class names, ``h width 3``: of many classes those shown; and ignored pixels if."""
    chosen = [i for i in range(label_space.num_classes) if i in shown or label_space.num_classes <= MANY_CLASSES]
    entries = [(short_name(label_space.classes[i]), label_space.colors[i]) for i in chosen]
    entries += [("ignored", label_space.ignored_color)] if IGNORE_INDEX in shown else []
    font, patch, line = typeface(14), 16, 24
    # As high as if every name had a line of its own, and cut to the lines that are used.
    picture, x, y = Image.new("RGB", (width, (len(entries) + 1) * line + MARGIN), PAPER), MARGIN, MARGIN // 2
    draw = ImageDraw.Draw(picture)
    for name, color in entries:
        advance = patch + 24 + int(font.getlength(name))
        if x + advance > width and x > MARGIN:
            x, y = MARGIN, y + line
        draw.rectangle((x, y + 4, x + patch, y + 4 + patch), fill=color, outline=FRAME)
        draw.text((x + patch + 6, y + 12), name, fill=INK, font=font, anchor="lm")
        x += advance
    return np.asarray(picture.crop((0, 0, width, y + line + MARGIN // 2)))


def short_name(name: str) -> str:
    """The class name in one line, cut where it is a list of synonyms."""
    name = visible(name)
    return name if len(name) <= 30 else f"{name[:29]}…"


def figure_name(name: str) -> str:
    """The short name of a class, for a figure of matplotlib."""
    return figure_text(short_name(name))


def frequent_classes(pixels: npt.NDArray[np.number]) -> list[int]:
    """Ids of the classes that tables and charts show: of more than 255 the 40 with most pixels (``c``), most first."""
    return np.argsort(-pixels, kind="stable")[:MANY_CLASSES].tolist() if len(pixels) > 255 else [*range(len(pixels))]


def panel(image: Tensor, truth: Tensor, prediction: Tensor, label_space: LabelSpace) -> Picture:
    """Photo, truth, prediction and errors side by side, with titles and a legend; arguments as of ``overlay``."""
    counted = truth != IGNORE_INDEX
    right = 100 * (prediction == truth)[counted].double().mean().item()
    share = f"{right:.1f} % of pixels right" if counted.any() else "no labelled pixel"
    tiles = {
        "image": as_picture(image, label_space.shown),
        "truth": overlay(image, truth, label_space),
        "prediction": overlay(image, prediction, label_space),
        f"errors · {share}": error_map(image, truth, prediction, label_space),
    }
    return tile_row(tiles, label_space, [truth, prediction])


def adaptation_panel(seen: Mapping[str, Tensor], student: Tensor, teacher: Tensor, label_space: LabelSpace) -> Picture:
    """What a step of domain adaptation saw and thought of one target image, side by side, with a legend.

    ``seen``: the target ``image`` and what the student was given, ``mixed``, uint8 RGB ``3 h w``; the teacher's
    ``label`` (class ids ``h w``) and ``confidence`` (``h w`` in [0, 1]). Then what both predict after it, ``h w``.
    """
    tiles = {
        "target image": as_picture(seen["image"], label_space.shown),
        "mixed image": as_picture(seen["mixed"], label_space.shown),
        "pseudo-label": overlay(seen["image"], seen["label"], label_space),
        f"confidence · mean {seen['confidence'].mean().item():.2f}": heat(seen["confidence"]),
        "student": overlay(seen["image"], student, label_space),
        "teacher": overlay(seen["image"], teacher, label_space),
    }
    return tile_row(tiles, label_space, [seen["label"], student, teacher])


def heat(values: Tensor) -> Picture:
    """Numbers in [0, 1], ``h w``, from dark blue to yellow."""
    from matplotlib import colormaps

    return (colormaps["viridis"](values.cpu().numpy())[..., :3] * 255).round().astype(np.uint8)


def tile_row(tiles: dict[str, Picture], label_space: LabelSpace, labels: Sequence[Tensor]) -> Picture:
    """Pictures of one size in a row under their titles, and a legend of the classes (of many, those in ``labels``)."""
    row = tile_grid([(title, picture, None) for title, picture in tiles.items()], len(tiles), TILE_WIDTH, 30, 15)
    shown = {i for label in labels for i in label.unique().tolist()}
    return np.concatenate([row, legend(label_space, row.shape[1], shown)])


def tile_grid(tiles: Sequence[Tile], columns: int, widths: tuple[int, int], top: int, size: int) -> Picture:
    """Pictures of one size under titles of ``size`` on ``top`` pixels, a patch of colour beside those that have one."""
    pictures = [fit_width(picture, widths) for _, picture, _ in tiles]
    height, width = pictures[0].shape[:2]
    step_x, step_y = width + MARGIN, height + top + MARGIN // 2
    canvas = Image.new("RGB", (MARGIN + columns * step_x, -(-len(tiles) // columns) * step_y), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, ((title, _, color), picture) in enumerate(zip(tiles, pictures, strict=True)):
        x, y = MARGIN + i % columns * step_x, i // columns * step_y
        if color is not None:
            draw.rectangle((x, y + 8, x + 12, y + 20), fill=color)
        draw.text((x + (18 if color else 0), y + top // 2 + 1), title, INK, typeface(size), "lm")
        canvas.paste(Image.fromarray(picture), (x, y + top))
    return np.asarray(canvas)


def confusions_figure(confusions: dict[str, Tensor], label_space: LabelSpace) -> "Figure":
    """Confusion matrices ``c c`` by title, side by side: each row as shares of its true pixels; grey without any."""
    n = label_space.num_classes
    counts = {title: confusion.cpu().double() for title, confusion in confusions.items()}
    shares = {title: (pixels / pixels.sum(1, keepdim=True)).numpy() for title, pixels in counts.items()}
    figure, charts = class_tables(shares, label_space.classes, 90 if n > 12 else 45, cmap="Blues", vmin=0, vmax=1)
    charts[0].set_ylabel("true class")
    figure.axes[-1].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    for axes, share in zip(charts, shares.values(), strict=True):
        axes.set_facecolor("0.88")
        axes.set_xlabel("predicted class")
        for label in axes.get_xticklabels() if n <= 12 else ():
            label.set(ha="right", rotation_mode="anchor")
        if n <= MANY_CLASSES:
            axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
            axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
            axes.grid(which="minor", color="white", linewidth=1.5)
            axes.tick_params(which="minor", length=0)
            for (row, column), value in np.ndenumerate(share):
                if value >= 0.005:
                    color = "white" if value > 0.5 else "0.2"
                    axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize=9)
    return figure


def class_tables(
    tables: Mapping[str, npt.NDArray[np.floating]], classes: Sequence[str], rotation: float | None, **style: Any
) -> "tuple[Figure, npt.NDArray[np.object_]]":
    """Tables ``c k`` by title, a row per class (with ``rotation`` a column, too); ``style`` is for ``imshow``."""
    side = min(16.0, max(6.0, 2.5 + 0.5 * len(classes)))
    figure = empty_figure((side - 0.6) * len(tables) + 1.6, side)
    charts = figure.subplots(1, len(tables), squeeze=False)[0]
    names = [figure_name(name) for name in classes] if len(classes) <= 150 else []  # more would overlap
    size = 10 if len(classes) <= MANY_CLASSES else max(3, 400 // len(classes))
    for axes, (title, table) in zip(charts, tables.items(), strict=True):
        picture = axes.imshow(table, **style)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        if rotation is not None:
            axes.set_xticks(range(len(names)), names, rotation=rotation, fontsize=size)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=12)
    figure.colorbar(picture, ax=charts, fraction=0.04, pad=0.02).outline.set_visible(False)  # type: ignore[operator]
    return figure, charts


def heatmap_figure(values: npt.NDArray[np.floating], classes: Sequence[str], title: str) -> Picture:
    """A table of shares in 0 to 1, one row per class (``c k``, e.g. prototype occupancy), as a picture ``h w 3``."""
    largest = max(float(values.max(initial=0)), 1e-12)
    figure, (axes,) = class_tables({title: values}, classes, None, vmin=0, vmax=largest, aspect="auto")
    axes.set_xticks(range(values.shape[1]) if values.shape[1] <= 20 else [])
    return figure_picture(figure)


def figure_picture(figure: "Figure") -> Picture:
    """A figure as a picture ``h w 3``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def bars_figure(shares: dict[str, npt.NDArray[np.floating]], label_space: LabelSpace, title: str) -> "Figure":
    """Shares in 0 to 1, ``c`` by entry, as logarithmic bars in the classes' colours; of many, the most frequent."""
    chosen = frequent_classes(np.sum([*shares.values()], axis=0))
    n = len(chosen)
    shares = {name: share[chosen] for name, share in shares.items()}
    figure = empty_figure(3 + 4 * len(shares), min(24.0, 1.5 + 0.22 * n))
    charts = figure.subplots(1, len(shares), sharex=True, sharey=True, squeeze=False)[0]
    colors = np.array(label_space.colors)[chosen] / 255
    for axes, (name, share) in zip(charts, shares.items(), strict=True):
        axes.barh(range(n), 100 * share, color=colors, edgecolor="0.6", linewidth=0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g} %")
        axes.set_title(name, fontsize=11)
        tidy(axes, "x")
    name_bars(charts[0], [label_space.classes[i] for i in chosen], 9 if n <= MANY_CLASSES else max(3, 800 // n))
    smallest = min((share[share > 0].min() for share in shares.values() if (share > 0).any()), default=1e-3)
    charts[0].set_xlim(50 * smallest, 100)
    figure.suptitle(title, fontsize=12)
    return figure


def name_bars(axes: "Axes", classes: Sequence[str], size: float = 9) -> None:
    """Class names at horizontal bars, the first one on top."""
    axes.set_yticks(range(len(classes)), [figure_name(name) for name in classes], fontsize=size)
    axes.set_ylim(len(classes) - 0.5, -0.5)


def tidy(axes: "Axes", lines: Literal["both", "x", "y"] = "both") -> None:
    """A chart with pale grid lines and no frame at the top and on the right."""
    axes.grid(axis=lines, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def empty_figure(width: float, height: float) -> "Figure":
    """An empty figure, sides in inches. Without pyplot: no global state, nothing to close, no change of backend."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _ids(label: Tensor, label_space: LabelSpace) -> npt.NDArray[np.integer]:
    """Class ids in their own type, with the number of classes in place of ``IGNORE_INDEX``."""
    ids: npt.NDArray[np.integer] = label.cpu().numpy()
    n, ignored = label_space.num_classes, ids == IGNORE_INDEX
    unknown = ((ids < 0) | (ids >= n)) & ~ignored
    if unknown.any():
        text = f"picture of labels: expected ids 0 to {n - 1} or {IGNORE_INDEX} of label space {label_space.name!r}"
        raise ProtosegError(f"{text}, got {np.unique(ids[unknown]).tolist()}; check that the labels belong to it")
    return np.where(ignored, ids.dtype.type(n), ids)


def rgb(image: Tensor, shown: Sequence[int] = ()) -> Tensor:
    """What pictures show of an image ``c h w``, uint8 or float in 0 to 1: uint8 ``3 h w``.

    Of more than three channels ``shown``, or the first; of fewer the first, in grey.
    """
    if len(image) != 3:
        image = image[list(shown or (0, 1, 2))] if len(image) > 3 else image[:1].expand(3, -1, -1)
    return (image * 255).round().clamp(0, 255).byte() if image.is_floating_point() else image


def as_picture(image: Tensor, shown: Sequence[int] = ()) -> Picture:
    """An image as a picture ``h w 3``; see :func:`rgb`."""
    return rgb(image.detach(), shown).permute(1, 2, 0).cpu().numpy()


def fit_width(picture: Picture, widths: tuple[int, int] = TILE_WIDTH) -> Picture:
    """Enlarged or reduced to a width between the two given."""
    height, width = picture.shape[:2]
    wanted = min(max(width, widths[0]), widths[1])
    if wanted == width:
        return picture
    # Nearest when enlarging: no invented colours. Box when reducing: thin things stay visible.
    method = Image.Resampling.NEAREST if wanted > width else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize((wanted, max(1, round(height * wanted / width))), method))
