"""People who stand, walk or ride; they face +y and stand on z = 0."""

from __future__ import annotations

import numpy as np

from protoseg.render import labels
from protoseg.render.mesh import Mesh, Points, Surface, box, ellipsoid, join, tube
from protoseg.render.vehicles import bicycle

_SKIN = ((0.87, 0.68, 0.57), (0.80, 0.60, 0.48), (0.62, 0.43, 0.32), (0.42, 0.28, 0.20), (0.30, 0.20, 0.15))
_HAIR = ((0.06, 0.05, 0.04), (0.20, 0.13, 0.08), (0.38, 0.27, 0.15), (0.60, 0.48, 0.28), (0.60, 0.60, 0.60))
_LOWER = (
    (0.12, 0.15, 0.25),
    (0.20, 0.24, 0.35),
    (0.08, 0.08, 0.09),
    (0.30, 0.27, 0.22),
    (0.45, 0.40, 0.32),
    (0.25, 0.25, 0.27),
)
_UPPER = (
    (0.10, 0.10, 0.12), (0.18, 0.22, 0.35), (0.55, 0.12, 0.12), (0.75, 0.74, 0.70), (0.25, 0.38, 0.28),
    (0.45, 0.45, 0.48), (0.70, 0.60, 0.20), (0.40, 0.25, 0.18), (0.20, 0.45, 0.62), (0.62, 0.30, 0.42),
)  # fmt: skip


def person(random: np.random.Generator) -> Mesh:
    """A grown-up or a child, on foot."""
    swing = random.uniform(-0.5, 0.5) if random.random() < 0.75 else 0.06
    hip, knee = (0.09, 0.0, 0.92), 0.48
    legs = []
    for side in (-1, 1):
        a = swing * side
        k = (side * 0.1, 0.44 * np.sin(a), hip[2] - 0.44 * np.cos(a))
        foot = (side * 0.1, k[1] + knee * np.sin(a - 0.25 * abs(a)), k[2] - knee * np.cos(a - 0.25 * abs(a)) + 0.05)
        legs.append([(side * hip[0], 0, hip[2]), k, foot])
    hands = [(side * 0.27, -0.38 * np.sin(swing * side) + 0.06, 0.90) for side in (-1, 1)]
    height = random.normal(1.0, 0.05) if random.random() < 0.88 else random.uniform(0.6, 0.8)
    return _figure(random, labels.PERSON, legs, hands, lean=0.02).placed(scale=(height, height, height))


def rider(random: np.random.Generator) -> Mesh:
    """A cyclist on a bicycle."""
    phase = random.uniform(0, 2 * np.pi)
    legs = []
    for side, a in ((-1, phase), (1, phase + np.pi)):
        foot = (side * 0.1, -0.08 + 0.17 * np.cos(a), 0.34 + 0.17 * np.sin(a))
        legs.append([(side * 0.09, -0.22, 0.98), (side * 0.12, 0.16, 0.74 + 0.1 * np.sin(a)), foot])
    hands = [(side * 0.26, 0.32, 1.04) for side in (-1, 1)]
    helmet = random.random() < 0.5
    return join(
        [bicycle(random), _figure(random, labels.RIDER, legs, hands, lean=0.42, hip=(0, -0.22, 0.98), helmet=helmet)]
    )


def _figure(
    random: np.random.Generator,
    label: int,
    legs: Points,
    hands: Points,
    lean: float,
    hip: Points = (0, 0, 0.92),
    helmet: bool = False,
) -> Mesh:
    """Legs (hip, knee, foot) and hands given; the rest follows from the hip and how far the trunk leans forward."""

    def cloth(colors: Points) -> Surface:
        color = np.asarray(colors[random.integers(len(colors))]) * random.uniform(0.8, 1.15)
        return Surface(label, tuple(np.clip(color, 0.02, 0.95)))

    skin, hair, lower, upper, shoe = cloth(_SKIN), cloth(_HAIR), cloth(_LOWER), cloth(_UPPER), cloth(_HAIR)
    up = np.array([0, np.sin(lean), np.cos(lean)])
    base = np.asarray(hip, float)
    trunk = [base + up * h for h in (-0.06, 0.05, 0.22, 0.40, 0.52, 0.57)]
    girth = [(0.15, 0.11), (0.17, 0.125), (0.15, 0.115), (0.195, 0.13), (0.19, 0.105), (0.07, 0.06)]
    parts = [tube(trunk, girth, upper, 8)]
    if random.random() < 0.3:  # a coat or a skirt
        parts.append(tube([base + up * 0.1, base - up * 0.35], [(0.17, 0.13), (0.21, 0.17)], upper, 8))
    neck = base + up * 0.55
    head = neck + up * 0.05 + (0, 0.02, 0.12)
    parts.append(tube([neck, head], 0.055, skin, 6))
    parts.append(ellipsoid(head, (0.078, 0.098, 0.115), skin, 8))
    cap = cloth(_UPPER) if helmet else hair
    parts.append(ellipsoid(np.add(head, (0, -0.018, 0.035)), (0.088, 0.105, 0.098), cap, 8))
    for leg in legs:
        parts.append(tube(leg, (0.088, 0.062, 0.045), lower, 6))
        parts.append(box((0.09, 0.25, 0.085), np.add(leg[2], (0, 0.06, -0.05)), shoe, 0.8))
    sleeves = skin if random.random() < 0.3 else upper
    for side, hand in zip((-1, 1), hands, strict=True):
        shoulder = base + up * 0.50 + (side * 0.185, 0, 0)
        elbow = (shoulder + hand) / 2 + (side * 0.04, -0.05, -0.04)
        parts.append(tube([shoulder, elbow], (0.058, 0.046), upper, 5))
        parts.append(tube([elbow, np.asarray(hand)], (0.045, 0.034), sleeves, 5))
        parts.append(ellipsoid(hand, (0.04, 0.05, 0.055), skin, 4))
    kind = random.random()
    if kind < 0.25:  # a rucksack
        parts.append(box((0.28, 0.14, 0.38), base + up * 0.33 + (0, -0.17, 0), cloth(_UPPER), 0.8))
    elif kind < 0.45 and label == labels.PERSON:  # a bag
        parts.append(box((0.1, 0.3, 0.28), np.add(hands[0], (0, 0, -0.22)), cloth(_LOWER), 0.8))
    return join(parts)
