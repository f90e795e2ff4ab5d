"""The page to label on, in a browser: classes are made and taught, and nothing leaves the machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from PIL import Image

from examples.labelling_page.clicks import NONE, Session
from examples.labelling_page.evidence import blank_file

FILES = Path(__file__).parents[2] / "examples" / "labelling_page" / "page"
ODD = "red \"<b>&'</b>"  # a name is data
COLORS = {ODD: (200, 40, 40), "blue": (40, 40, 200), "green": (30, 220, 30)}
SIZE = (64, 96)


def patches(folder: Path) -> list[np.ndarray]:
    """Images, left half red, right half blue, with a green patch somewhere; each pixel's place in COLORS."""
    rng, truths = np.random.default_rng(0), []
    for number in range(4):
        truth = np.zeros(SIZE, np.uint8)
        truth[:, 48:] = 1
        top, left = rng.integers(4, 28), rng.integers(4, 52)
        truth[top : top + 32, left : left + 40] = 2
        picture = np.array([*COLORS.values()])[truth] + rng.integers(-10, 10, (*SIZE, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number} <i>.png")
        truths.append(truth)
    (folder / "damaged.png").write_bytes(b"not an image")
    return truths


@pytest.fixture
def made(tmp_path: Path) -> tuple[Session, list[np.ndarray]]:
    """A session of an untrained encoder on four images and a damaged one, and the truth of the four."""
    torch.manual_seed(0)
    (tmp_path / "photos").mkdir()
    truths = patches(tmp_path / "photos")
    section = {"_target_": "protoseg.models.encoders.TimmEncoder", "name": "tf_efficientnet_lite0", "pretrained": False}
    file = blank_file("lite0", section, hydra.utils.instantiate(section))
    return Session(file, tmp_path / "photos", tmp_path / "out"), truths


@contextmanager
def served(session: Session) -> Iterator[str]:
    """The address of the page, while it is served; the session is closed after it."""
    pytest.importorskip("aiohttp", reason="the page is served by aiohttp")
    from examples.labelling_page import server

    try:
        with server.served(session, "token") as address:
            yield address
    finally:
        session.close()


def test_the_page_is_one_of_plain_files() -> None:
    """No script or style inside the page, nothing from elsewhere, and no name is ever read as markup."""
    texts = {path.name: path.read_text() for path in FILES.iterdir()}
    assert sorted(texts) == ["lists.js", "page.css", "page.html", "page.js", "view.js"]
    assert not re.search(r"https?://|//cdn|@import|url\(", "".join(texts.values()))
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", texts["page.html"])
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", texts["page.js"] + texts["view.js"]
    )
    ids = set(re.findall(r'id="([\w-]+)"', texts["page.html"]))
    assert set(re.findall(r'\$\("([\w-]+)"\)', texts["page.js"])) <= ids
    for field in re.findall(r"<(?:input|canvas|progress)[^>]*>", texts["page.html"]):
        assert "aria-label" in field or f'id="{re.search("id=.([a-z]+)", field)[1]}"' in "".join(  # type: ignore[index]
            re.findall(r"<label.*?</label>", texts["page.html"])
        )


class Hand:
    """A user of the page."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def until(self, expression: str) -> None:
        """Wait for something in the page, whose policy forbids ``wait_for_function``."""
        for _ in range(200):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(expression)

    def still(self) -> None:
        """Wait until all that was sent is answered and shown."""
        self.until("document.getElementById('canvas').getAttribute('aria-busy') === 'false'")

    def at(self, x: int, y: int) -> tuple[float, float]:
        """Where a pixel of the whole image is on the screen."""
        box = self.page.locator("#canvas").bounding_box()
        scale = min(box["width"] / SIZE[1], box["height"] / SIZE[0])
        left, top = box["x"] + (box["width"] - SIZE[1] * scale) / 2, box["y"] + (box["height"] - SIZE[0] * scale) / 2
        return left + (x + 0.5) * scale, top + (y + 0.5) * scale

    def click(self, x: int, y: int) -> None:
        self.page.mouse.click(*self.at(x, y))
        self.still()

    def key(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.still()

    def add(self, name: str) -> None:
        self.page.fill("#name", name)
        self.page.click("#add button")
        self.still()

    def image(self) -> int:
        """The number of the image in view."""
        return int(self.page.inner_text("#place")[0])


@pytest.mark.slow
def test_teaching_in_a_browser(made: tuple[Session, list[np.ndarray]], tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    session, truths = made
    said: list[str] = []
    asked: list[str] = []
    with served(session) as address, sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_context(viewport={"width": 1400, "height": 900}).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        hand = Hand(page)
        hand.still()
        _teach(hand, session, truths)
        _correct_and_accept(hand, session)
        _zoom(hand)
        assert said == []
        _refused(hand, session, said)
        _narrow(hand)
        _another_origin(chromium, address, session)
        home = address.split("?")[0]
        assert [url for url in asked if not url.startswith((home, "data:"))] == []
        chromium.close()


def _teach(hand: Hand, session: Session, truths: list[np.ndarray]) -> None:
    """Five clicks teach three classes; undo and redo; the keyboard alone; "not this"."""
    page, first = hand.page, hand.image()
    for name in COLORS:
        hand.add(name)
    assert session.space.classes == tuple(COLORS)
    assert page.locator("#classes li").count() == 4  # and no label
    hand.until("document.querySelectorAll('#images .bar').length === 4")  # the ranking has seen all
    for number, share in ((0, 0.5), (1, 0.5), (2, 0.5), (2, 0.3), (0, 0.9)):
        hand.key(str(number + 1))
        rows, columns = np.nonzero(truths[first] == number)
        place = int(share * len(rows))
        while session.rank_one():  # the strip compares with what was ranked before the click
            pass
        hand.click(int(columns[place]), int(rows[place]))
    assert session.clicked == [first]
    others = [i for i in range(4) if i != first]
    right = np.mean([(session.labels(i) == truths[i]).mean() for i in others])
    assert right > 0.6, right  # on images never clicked, of an untrained network
    assert "Learnt in" in page.inner_text("#status")
    assert page.locator("#changed button").count() > 0
    taught = session.labels(others[0])
    for _ in range(3):
        hand.key("z")
    assert sum(action["do"] == "teach" for action in session.actions) == 2
    page.click("#redo")
    hand.key("Control+y")
    hand.key("Control+Shift+z")
    np.testing.assert_array_equal(session.labels(others[0]), taught)
    hand.key("w")
    hand.key("Enter")
    assert sum(action["do"] == "teach" for action in session.actions) == 6
    hand.key("ArrowLeft")
    hand.key("x")
    hand.key("Enter")
    assert "not" in session.actions[-1]
    hand.key("z")
    hand.key("Escape")


def _correct_and_accept(hand: Hand, session: Session) -> None:
    """Brush and polygon change this image's label alone; accepted, it is followed by the next one."""
    page, first = hand.page, hand.image()
    before = [session.labels(i) for i in range(4)]
    hand.key("b")
    page.click("#classes li:last-child label")  # no label
    page.mouse.move(*hand.at(10, 10))
    page.mouse.down()
    page.mouse.move(*hand.at(30, 10), steps=4)
    page.mouse.up()
    hand.still()
    assert session.labels(first)[10, 20] == NONE
    hand.key("2")
    hand.key("g")
    for x, y in ((60, 40), (90, 40), (90, 60), (60, 60)):
        hand.click(x, y)
    hand.key("Enter")
    assert (session.labels(first)[42:58, 62:88] == 1).all()
    for i in set(range(4)) - {first}:
        np.testing.assert_array_equal(session.labels(i), before[i])
    hand.key("a")
    assert session.done == {session.names[first]}
    assert hand.image() != first
    assert "1 of 5 finished" in page.inner_text("body")
    hand.key("Shift+N")
    assert hand.image() == first


def _zoom(hand: Hand) -> None:
    """By the wheel and by two fingers; F shows the whole image again."""
    page = hand.page

    def shown_at(x: int, y: int) -> str:
        page.mouse.move(*hand.at(x, y))
        return str(page.inner_text("#under").split(":")[0])

    touch = page.context.new_cdp_session(page)
    left, right = hand.at(40, 30), hand.at(56, 30)

    def fingers(kind: str, apart: float) -> None:
        points = [{"x": left[0] - apart, "y": left[1]}, {"x": right[0] + apart, "y": right[1]}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points if kind != "touchEnd" else []})

    assert shown_at(10, 10) == "10, 10"
    page.mouse.move(*hand.at(48, 32))
    page.mouse.wheel(0, -400)
    assert shown_at(10, 10) != "10, 10"
    hand.key("f")
    assert shown_at(10, 10) == "10, 10"
    for kind, apart in (("touchStart", 0), ("touchMove", 50), ("touchMove", 100), ("touchEnd", 0)):
        fingers(kind, apart)
    assert shown_at(10, 10) != "10, 10"
    hand.key("f")
    assert shown_at(10, 10) == "10, 10"


def _refused(hand: Hand, session: Session, said: list[str]) -> None:
    """What the server refuses is a sentence in view; a damaged image is shown as such."""
    page, version = hand.page, session.version
    hand.add("blue")
    assert "'blue'" in page.inner_text("#sentence")
    assert session.version == version
    page.click("#close")
    assert not page.is_visible("#message")
    assert "damaged" in page.locator("#images li").last.inner_text()
    page.locator("#images li").last.locator("button").click()
    assert "damaged.png" in page.inner_text("#empty")
    assert [text for text in said if "400" not in text] == []
    page.context.set_offline(True)
    page.click("#undo")
    hand.still()
    assert "The server does not answer" in page.inner_text("#sentence")
    page.context.set_offline(False)


def _narrow(hand: Hand) -> None:
    """A telephone's width, and the list of keys."""
    hand.page.set_viewport_size({"width": 390, "height": 844})
    assert hand.page.evaluate("document.documentElement.scrollWidth") == 390
    hand.key("Escape")
    hand.page.click("#help")
    assert hand.page.is_visible("#keys")
    assert hand.page.locator("#keys").bounding_box()["width"] <= 390
    hand.page.click("#keys-close")


def _another_origin(chromium: Any, address: str, session: Session) -> None:
    """A page from elsewhere cannot send clicks, even one that knows the token."""
    version, other = session.version, chromium.new_context().new_page()
    for kind in ("text/plain", "application/json"):
        with suppress(Exception):
            other.evaluate(
                "([url, kind]) => fetch(url, {method: 'POST', headers: {'Content-Type': kind}, body: '{}'})",
                [address.replace("/?", "/undo?"), kind],
            )
    assert session.version == version
