"""The report's page: its numbers are those of the model, and it opens in a browser without a network."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protoseg.analysis.stream import look
from protoseg.evaluation.evaluate import evaluate
from protoseg.evaluation.predictor import Predictor
from protoseg.page.page import WorstImages, jpeg_uri, pixel_view, prototype_report, write_page
from protoseg.types import LabelSpace
from tests.analysis.toy import PROTOTYPES, SPACE, Images, Toy, loader
from tests.functional.dense import dense

ODD_NAMES = LabelSpace("</script><b>", ("road", "sky & <i>clouds", "red car"), SPACE.colors)


def decoded(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def make_page(folder: Path, prototypes: bool = True, space: LabelSpace = SPACE) -> str:
    """Evaluate the toy model with a page; its text."""
    model, data, worst = Toy(prototypes), loader(), WorstImages(space, 3)
    data.dataset.samples = [(item.name, None) for item in data.dataset.items]
    result = evaluate(model, data, Predictor(), space, folder, "cpu", save=(), observe=worst.update)
    (folder / "logs").mkdir()
    (folder / "logs" / "metrics.csv").write_text("step,train/loss,val/mIoU\n1,0.5,0.1\n2,0.4,0.3\n")
    more: dict[str, Any] = {}
    if prototypes:
        row = {"class": "red car", "covered": 0.9, "size": 1.234, "single": float("nan")}
        more["doubt"] = {"figure": jpeg_uri(np.zeros((2, 2, 3), np.uint8), 2), "sets": [row, row | {"class": "all"}]}
        more["prototypes"] = prototype_report(model, loader(), space)
        more["views"] = [pixel_view(look(model.eval(), *Images()[i][:2], name=f"/photos/{i}.png")) for i in (0, 1)]
    confusion = np.load(folder / "confusion.npy")
    path = folder / "report.html"
    size = write_page(path, "toy", {"network": "student", "prototypes": "some"}, result, confusion, space, worst.found,
                      folder, **more)  # fmt: skip
    assert size == path.stat().st_size
    return path.read_text(encoding="utf-8")


def test_pixel_view_is_what_the_model_says() -> None:
    model = Toy().eval()
    image, label, _ = Images()[1]
    view = pixel_view(look(model, image, label))
    cosines = dense(model(image[None]).similarities)  # n c k
    classes = torch.arange(len(cosines)), cosines.amax(2).argmax(1)
    flat = cosines.flatten(1)
    assert decoded(view["prototype"], "<u2").tolist() == flat.argmax(1).tolist()
    others = cosines.clone()
    others[classes] = -2
    second = others.flatten(1)
    assert decoded(view["second"], "<u2").tolist() == second.argmax(1).tolist()
    step = (view["high"] - view["low"]) / 255
    for key, want in (("cosine", flat.amax(1)), ("second_cosine", second.amax(1))):
        got = view["low"] + step * decoded(view[key], "u1")
        assert np.abs(got - want.detach().numpy()).max() <= step
    truth = decoded(view["truth"], "<u2").reshape(-1, view["columns"])
    assert (truth[0] == 65535).all()  # the top rows are unlabelled
    assert truth[3, 4] == label[14, 18]
    assert (view["cell"], view["columns"], view["width"], view["height"]) == (4, 9, 33, 17)


def test_large_grids_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Toy().eval()
    whole = pixel_view(look(model, *Images()[0][:2]))
    monkeypatch.setattr("protoseg.page.page.MOST_CELLS", 20)
    thin = pixel_view(look(model, *Images()[0][:2]))
    assert (thin["cell"], thin["columns"]) == (8, 5)
    want = decoded(whole["prototype"], "<u2").reshape(6, 10)[::2, ::2]
    assert decoded(thin["prototype"], "<u2").tolist() == want.flatten().tolist()


def test_worst_images() -> None:
    worst = WorstImages(SPACE, 2)
    image, label = torch.zeros(3, 4, 6, dtype=torch.uint8), torch.tensor([[0] * 6] * 4)
    for name, wrong in (("good", 0), ("bad", 3), ("middle", 1)):
        prediction = label.clone()
        prediction[:wrong] = 1
        worst.update(name, image, label, prediction)
    worst.update("void", image, torch.full_like(label, -1), label)
    assert [(found.name, round(found.mIoU, 3), found.accuracy) for found in worst.found] == [
        ("bad", 0.125, 0.25),
        ("middle", 0.375, 0.75),
    ]
    partly = WorstImages(SPACE, 2, unlabelled=[1])
    partly.update("half", image, label, torch.tensor([[1] * 6] * 2 + [[0] * 6] * 2))
    assert partly.found[0].mIoU == 0.5  # of class 0 alone
    assert list(worst.found[0].tiles) == ["photo", "truth", "prediction", "errors"]


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    text = make_page(tmp_path, space=ODD_NAMES)
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]*)""", text)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "sky &amp; &lt;i&gt;clouds" in text
    assert "<i>clouds" not in text
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert json.loads(data)["classes"] == list(ODD_NAMES.classes)
    for i in range(3):
        for j in range(PROTOTYPES):
            assert f'id="p{i}-{j}"' in text
    assert "training curves" in text
    assert re.findall(r"1\.23</td>\s*<td[^>]*>–</td>", text)  # a label set's size, and of no pixel no share


def test_page_of_a_softmax_model(tmp_path: Path) -> None:
    text = make_page(tmp_path, prototypes=False)
    assert 'id="pixels"' not in text
    assert 'id="doubt"' not in text
    assert 'id="prototypes"' not in text
    assert text.count("confusion matrix") == 1
    assert text.count('class="worst"') == 3


@pytest.mark.slow
@pytest.mark.parametrize("prototypes", [True, False])
def test_in_a_browser(prototypes: bool, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    make_page(tmp_path, prototypes)
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_context(viewport={"width": 390, "height": 844}, offline=True).new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        page.click("th:nth-child(2)")
        numbers = "cells => cells.map(cell => +cell.dataset.value)"
        column = page.eval_on_selector_all("#classes tbody td:nth-child(2)", numbers)
        assert column == sorted(column, reverse=True)
        if prototypes:
            _click_pixels(page)
        assert not said
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        chromium.close()


def _click_pixels(page: Any) -> None:
    """The answer to a click is what the model says of that pixel."""
    model = Toy().eval()
    for number, (y, x) in ((0, (10, 6)), (0, (22, 38)), (1, (9, 21))):
        image = Images()[number][0]
        page.click(f"#images button:nth-child({number + 1})")
        page.wait_for_function(f"document.getElementById('answer').innerText.includes('{number}.png')")
        box = page.locator("#photo").bounding_box()
        scale = box["width"] / image.shape[2]
        page.click("#photo", position={"x": (x + 0.5) * scale, "y": (y + 0.5) * scale})
        grid = dense(model(image[None]).similarities).view(-(-image.shape[1] // 4), -1, 3, PROTOTYPES)
        cosines = grid[y // 4, x // 4]
        best = int(cosines.argmax())
        cards = page.locator("#answer > div")
        assert f"pixel {x // 4 * 4}, {y // 4 * 4} of {number}.png" in cards.nth(0).inner_text()
        nearest, second = cards.nth(1).inner_text(), cards.nth(2).inner_text()
        assert SPACE.classes[best // PROTOTYPES] in nearest
        assert f"prototype {best % PROTOTYPES}" in nearest
        shown = re.search(r"cosine (-?[\d.]+)", nearest)
        assert shown
        assert float(shown[1]) == pytest.approx(float(cosines.max()), abs=0.006)
        cosines[best // PROTOTYPES] = -2
        assert SPACE.classes[int(cosines.argmax()) // PROTOTYPES] in second
        patches = page.locator("#answer > div:nth-child(2) .patches img").count()
        assert patches == page.locator(f"#p{best // PROTOTYPES}-{best % PROTOTYPES} .patches img").count() > 0
    for i in range(4):
        page.click(f"#layers button:nth-child({i + 1})")
    before = page.inner_text("#answer")
    page.press("#photo", "ArrowLeft")
    assert page.inner_text("#answer") != before
