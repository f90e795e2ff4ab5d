"""Pixel contrast: limit cases, what it keeps and where, bad values, and nothing added to the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from torch import Tensor, nn

from protoseg.losses import Seen, Step
from protoseg.losses.contrast import PixelToPixelContrast, embed
from protoseg.types import IGNORE_INDEX, ProtosegError, SegOutput
from tests.losses.contrast_case import CONF, MANY, PRESETS, Case, cells, make, target_cells, warm


def no_reliable(case: Case) -> None:
    case.confidence.zero_()


def all_pasted(case: Case) -> None:
    case.pasted.fill_(True)


def nothing_labelled(case: Case) -> None:
    case.label.fill_(IGNORE_INDEX)
    case.pseudo_label.fill_(IGNORE_INDEX)


def one_anchor(case: Case) -> None:
    case.confidence.zero_()
    case.confidence[0, 1, 1] = 1
    case.pasted[0, 1, 1] = False
    case.label.fill_(IGNORE_INDEX)


def one_class(case: Case) -> None:
    case.label[case.label != IGNORE_INDEX] = 2
    case.pseudo_label.fill_(2)


def nothing(case: Case) -> None:
    pass


LIMITS = (no_reliable, all_pasted, nothing_labelled, one_anchor, one_class, nothing)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.__name__)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("warmed", [False, True], ids=["empty", "filled"])
def test_limit_cases_are_finite(preset: str, limit: Callable[[Case], None], warmed: bool) -> None:
    case = Case(classes=7)
    term = make(preset, case, temperature=0.07, anchors=12)
    if warmed:
        warm(term, case)
    limit(case)
    loss = term(case.batch())
    loss.backward()
    parameters = [p for p in term.parameters() if p.requires_grad]
    gradients = [case.features["mixed"].grad, *(p.grad for p in parameters)]
    assert torch.isfinite(loss)
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    if limit is nothing_labelled:
        assert loss.item() == 0
        assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("preset", PRESETS)
def test_two_classes_still_learn(preset: str) -> None:
    case = Case(classes=2)
    term = warm(make(preset, case, low_rank=3), case)
    loss = term(case.batch())
    loss.backward()
    assert loss > 0.01
    assert case.features["mixed"].grad.abs().max() > 0


# Not pixel_to_pixel: it resizes whole maps, and what an ignored pixel shows reaches its neighbours.
@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "pixel_to_pixel"])
def test_ignored_pixels_change_nothing(preset: str) -> None:
    """Whatever stands under 255, under a pasted pixel or in a row that is left out, the loss is the same."""
    values = []
    for change in (0.0, 5.0):
        case = Case()
        case.pasted[1, 4:8] = True
        term = warm(make(preset, case), case)
        case.features["source"].data[0, :, :, 0] += change  # labelled 255
        case.features["mixed"].data[1, :, 2:4] += change  # pasted over
        case.features["mixed"].data[:, :, -1] -= change  # left out
        torch.manual_seed(7)
        values.append(term(case.batch()).item())
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_observations_are_labelled_source_and_reliable_target_pixels() -> None:
    case = Case()
    term = make("pgpc", case)
    assert "memory.prototypes" in term.state_dict()
    term(case.batch())
    ((memory, embeddings, _, _, correct, member),) = term.observations
    assert memory is term.memory
    source = sum(bool(case.label[b, v, u] != IGNORE_INDEX) for b, _, _, v, u in cells(case))
    target = sum(bool(case.confidence[b, v, u] >= 0.6) for b, _, _, v, u in target_cells(case))
    assert int((member >= 0).sum()) == source + target
    assert not embeddings.requires_grad
    assert correct.dtype == torch.bool
    assert 0 < correct.sum() < len(correct)


def test_shared_prototypes_are_the_heads_own() -> None:
    case = Case(head="prototype")
    case.model.head.memory.updates.fill_(1)
    term = make("pgpc", case)
    before = case.model.head.memory.prototypes.clone()
    loss = term(case.batch())
    assert term.memory is None
    assert term.observations == []
    assert not list(term.parameters())
    assert not any("memory" in name for name in term.state_dict())
    case.model.head.memory.prototypes.neg_()  # moved between forward and backward
    loss.backward()
    case.model.head.memory.prototypes.neg_()
    assert torch.equal(case.model.head.memory.prototypes, before)
    case.model.head.memory.prototypes.copy_(case.model.head.memory.prototypes.roll(1, 0))
    assert term(case.batch()) > loss  # positives follow the head's memory: those of another class are farther


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_is_added_to_the_model(preset: str) -> None:
    case = Case()
    parameters, buffers = len(list(case.model.parameters())), len(list(case.model.buffers()))
    with torch.no_grad():
        before = case.model(case.features["source"])
    term = warm(make(preset, case), case)
    with torch.no_grad():
        after = case.model(case.features["source"])
    assert torch.equal(before.logits, after.logits)
    assert (len(list(case.model.parameters())), len(list(case.model.buffers()))) == (parameters, buffers)
    owned = {id(x) for x in [*term.parameters(), *term.buffers()]}
    assert not owned & {id(x) for x in [*case.model.parameters(), *case.model.buffers()]}


@pytest.mark.parametrize("preset", PRESETS)
def test_resumed_from_its_state_it_goes_on_alike(preset: str) -> None:
    case = Case()
    term = warm(make(preset, case), case)
    copy = make(preset, case)
    copy.load_state_dict(term.state_dict())
    values = []
    for one in (term, copy):
        torch.manual_seed(3)
        values.append(one(case.batch()).item())
    assert values[0] == values[1]


@pytest.mark.parametrize("preset", PRESETS)
def test_autocast_does_not_reach_the_contrast(preset: str) -> None:
    case = Case()
    term = warm(make(preset, case), case)
    values = []
    for enabled in (False, True):
        batch = case.batch()
        torch.manual_seed(3)
        state = {key: value.clone() for key, value in term.state_dict().items()}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            values.append(term(batch))
        term.load_state_dict(state)
    torch.testing.assert_close(values[0], values[1], atol=1e-12, rtol=0)


def test_embeddings_have_unit_length_also_of_half_precision_features() -> None:
    projection = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    embeddings = embed(projection, torch.randn(5, 4, 6, dtype=torch.bfloat16))
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=2), torch.ones(5, 4))


def test_released_features_are_resized_corner_on_corner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value i of 5 lies at i * 3 / 4 of 4 cells; ours are at (i + 1/2) * 4 / 5 - 1/2."""
    seen: list[torch.Tensor] = []

    def keep(features: torch.Tensor, *_: Any) -> torch.Tensor:
        seen.append(features)
        return features.sum()

    monkeypatch.setattr("protoseg.functional.contrast.pixel_to_pixel", keep)
    map_ = torch.arange(4.0).expand(1, 1, 4, 4)
    output = SegOutput(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), features=[map_])
    for align_corners in (True, False):
        term = PixelToPixelContrast(size=(5, 5), align_corners=align_corners)
        term(Step(torch.nn.Identity(), Seen(output, torch.zeros(1, 16, 16, dtype=torch.long), 4)))
    index = torch.arange(5.0)
    torch.testing.assert_close(seen[0][0, 0, 0], index * 3 / 4)
    torch.testing.assert_close(seen[1][0, 0, 0], ((index + 0.5) * 4 / 5 - 0.5).clamp(0, 3))


def test_none_has_no_target() -> None:
    with initialize_config_dir(str(CONF / "contrast"), version_base="1.3"):
        assert "_target_" not in compose("none")


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("pgpc", {"temperature": 0}, "temperature"),
        ("pgpc", {"reliable": 1.5}, "reliable"),
        ("pgpc", {"anchors": 0}, "anchors"),
        ("pgpc", {"low_rank": 5, "high_rank": 5}, "low_rank"),
        ("pgpc", {"dim": 0}, "dim"),
        ("u2pl", {"entropy_share": 0.7}, "entropy_share"),
        ("u2pl", {"per_step": 5 * MANY}, "per_step"),
        ("sepico_proto", {"min_ratio": 2}, "min_ratio"),
        ("pixel_contrast", {"keys": 0}, "keys"),
        ("pixel_to_pixel", {"size": [65]}, "size"),
    ],
)
def test_bad_values(preset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ProtosegError, InstantiationException)) as caught:
        make(preset, Case(), **options)
    error = caught.value.__cause__ or caught.value
    assert isinstance(error, ProtosegError)
    assert message in str(error)


@pytest.mark.parametrize("head", ["parametric", "prototype"])
def test_pgpc_queues_hold_the_students_embeddings(head: str) -> None:
    """Prototypes follow the student: negatives that lag behind, as the teacher's do, let all classes collapse."""
    case = Case(head=head)
    term = make("pgpc", case)
    batch = case.batch()
    term(batch)

    def rows_of(features: Tensor) -> Tensor:
        return embed(term.projection, features.permute(0, 2, 3, 1).flatten(0, 2)).detach()

    for queue in (term.reliable_queue, term.unreliable_queue):
        held = queue.features[torch.arange(queue.features.shape[1]) < queue.fill.unsqueeze(1)]
        assert len(held) > 0
        assert (held @ rows_of(batch.mixed.output.embeddings).T).amax(1).min() > 1 - 1e-12
        assert (held @ rows_of(batch.target.teacher.embeddings).T).amax(1).min() < 0.999
