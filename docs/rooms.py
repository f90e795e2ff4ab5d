"""Draw the rooms of the package: ``python -m docs.rooms`` draws pictures/rooms.png and prints the table of house.md."""

from __future__ import annotations

import sys
from graphlib import TopologicalSorter
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as MplPath

from tests.test_imports import DOORS, FLOORS, PACKAGE, imports

GROUND = "ground"
PICTURE = Path(__file__).parent / "pictures" / "rooms.png"


def room_of(name: str) -> str:
    """The room of a file or folder; what lies on the ground floor is one room here."""
    return GROUND if name in FLOORS[0] else name


def rooms() -> tuple[dict[str, int], dict[str, int], dict[str, set[str]]]:
    """Floor, lines of Python and imported rooms of each room; doors, which only call the command line, left out."""
    floor = {room_of(name): number for number, names in enumerate(FLOORS) for name in names}
    lines, below = dict.fromkeys(floor, 0), {name: set() for name in floor}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name in DOORS | {"__init__"}:
            continue
        room = room_of(name)
        lines[room] += len(file.read_text().splitlines())
        if file.stem not in DOORS:
            below[room] |= {room_of(other) for other in imports(file)} - {room}
    return floor, lines, below


def running_back(floor: dict[str, int], below: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports that do not lead to a lower floor: there should be none."""
    return [(room, other) for room, others in below.items() for other in others if floor[other] >= floor[room]]


def reduced(below: dict[str, set[str]]) -> dict[str, set[str]]:
    """Imports without those that follow from others: a drawn way leads from a room to all that it imports."""
    reached: dict[str, set[str]] = {}
    for room in TopologicalSorter(below).static_order():
        reached[room] = below[room].union(*(reached[other] for other in below[room]))
    return {room: others - set().union(*(reached[other] for other in others)) for room, others in below.items()}


Place = tuple[int, str]


def ways_of(floor: dict[str, int], arrows: dict[str, set[str]]) -> list[list[Place]]:
    """Each arrow as the places it goes through: a room, one place on every floor between, a room."""
    ways = []
    for room, other in sorted((room, other) for room, others in arrows.items() for other in others):
        between = [(number, f"{room} {other}") for number in range(floor[room] - 1, floor[other], -1)]
        ways.append([(floor[room], room), *between, (floor[other], other)])
    return ways


def apart(wanted: list[float], width: list[float]) -> list[float]:
    """Positions nearest to those wanted, in the same order, at which things of these widths do not touch."""
    edges = list(accumulate(((left + right) / 2 for left, right in pairwise(width)), initial=0.0))
    blocks: list[list[float]] = []
    for position, edge in zip(wanted, edges, strict=True):
        blocks.append([position - edge])
        while len(blocks) > 1 and mean(blocks[-2]) > mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [mean(block) + edge for (block, edge) in zip([b for b in blocks for _ in b], edges, strict=True)]


def positions(ways: list[list[Place]], rooms_: dict[str, int]) -> dict[Place, float]:
    """Where rooms and places of arrows stand on their floors: near the middle of what they are joined to."""
    joined: dict[Place, list[Place]] = {}
    for one, two in (pair for way in ways for pair in pairwise(way)):
        joined.setdefault(one, []).append(two)
        joined.setdefault(two, []).append(one)
    x = {place: float(number) for number, place in enumerate(sorted(joined))}
    for sweep in range(60):  # down the floors, up again, in the end by both sides
        sign = 1 if sweep % 2 else -1
        for number in sorted({number for number, _ in joined}, key=lambda n: sign * n):
            wanted = {}
            for place in (place for place in joined if place[0] == number):
                seen = [x[other] for other in joined[place] if sweep > 40 or sign * (other[0] - number) < 0]
                wanted[place] = mean(seen) if seen else x[place]
            row = sorted(wanted, key=wanted.__getitem__)
            width = [1.6 if name in rooms_ else 0.5 for _, name in row]
            x.update(zip(row, apart([wanted[place] for place in row], width), strict=True))
    return x


def arrow(points: list[tuple[float, float]]) -> FancyArrowPatch:
    """Down through ``points`` without a corner."""
    vertices, codes = [points[0]], [MplPath.MOVETO]
    for (left, high), (right, low) in pairwise(points):
        vertices += [(left, (high + low) / 2), (right, (high + low) / 2), (right, low)]
        codes += [MplPath.CURVE4] * 3
    return FancyArrowPatch(path=MplPath(vertices, codes), arrowstyle="-|>", mutation_scale=13, color="#7a8aa0", lw=1.3)


def draw(path: Path) -> None:
    """Draw the rooms on their floors, and arrows to what they import."""
    floor, lines, below = rooms()
    ways = ways_of(floor, reduced(below))
    x = positions(ways, floor)
    figure, axes = plt.subplots(figsize=(10.5, 11), dpi=100)
    for way in ways:
        # Straight past the boxes of each floor, from the bottom of a box to the top of another.
        heights = [(x[place], place[0] + off) for place in way for off in (0.31, -0.31)]
        axes.add_patch(arrow(heights[1:-1]))
    for name, number in floor.items():
        at, half = x[number, name], 3.9 if name == GROUND else 0.62
        edge = {"boxstyle": "round,pad=0.05", "fc": "#e8eef7", "ec": "#35507a"}
        axes.add_patch(FancyBboxPatch((at - half, number - 0.24), 2 * half, 0.48, **edge))
        title = ", ".join(sorted(FLOORS[0])) if name == GROUND else name
        axes.text(at, number + 0.11, title, ha="center", va="center", fontsize=11 if name == GROUND else 12)
        axes.text(at, number - 0.16, f"{lines[name]:,} lines", ha="center", va="center", fontsize=9.5, color="#444")
    left, right = (at(x.values()) for at in (min, max))
    wide = next(place for (_, name), place in x.items() if name == GROUND)
    axes.set(xlim=(min(left - 1, wide - 4), max(right + 1, wide + 4)), ylim=(-0.4, len(FLOORS) - 0.6))
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def table() -> str:
    """Lines of Python of each room, from the top floor down, as Markdown."""
    floor, lines, _ = rooms()
    rows = [f"| {floor[name]} | `{name}` | {lines[name]} |" for name in sorted(floor, key=lambda n: (-floor[n], n))]
    return "\n".join(["| floor | room | lines |", "|---|---|---|", *rows, f"| | all | {sum(lines.values())} |"])


def main() -> None:
    """Draw the picture and print the table; exit code 1 where an import runs back."""
    floor, _, below = rooms()
    if back := running_back(floor, below):
        sys.exit(f"imports that run back: {back}")
    draw(PICTURE)
    print(table())


if __name__ == "__main__":
    main()
