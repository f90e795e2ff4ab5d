"""The page of settings says what the YAML says, and the recipes what the released codes do."""

from __future__ import annotations

import pytest

from docs import settings


def test_the_page_is_up_to_date() -> None:
    """Else: python -m docs.settings."""
    assert settings.PAGE.read_text().partition(settings.MARK)[2].strip() == settings.written().strip()


def test_recipes_with_a_papers_name_run_the_released_values() -> None:
    assert settings.differences() == {("protoseg_segformer_b4", "decoder.dropout"): (0.1, None)}


def test_another_value_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        settings, "released", lambda: {"daformer": {"method.alpha": 0.9, "optimizer.no_decay": ["norm"]}}
    )
    assert settings.differences() == {("daformer", "method.alpha"): (0.9, 0.999)}
    assert "| `daformer` | 2 | 1 | `method.alpha`: **there 0.9**, here 0.999 |" in settings.comparison()
