"""Five clicks in a browser: ``python -m benchmarks.clicking_page camvid --checkpoint READY.ckpt --name Car --out DIR``.

The page is served as ``examples.labelling_page`` does, and opened by Chromium (``pip install playwright``; Debian's
``chromium``). The class is added, and clicked five times where its truth says it is; printed are its IoU on images
that are never clicked, before and after, how long the picture took to follow, and every host that was asked.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from playwright.sync_api import sync_playwright

from benchmarks.clicking import DATA, Annotator, largest_error, start
from examples.labelling_page.clicks import Session
from examples.labelling_page.server import served

BUSY = "document.getElementById('canvas').getAttribute('aria-busy') !== 'false'"


class User:
    """Someone before the page."""

    def __init__(self, page: Any, session: Session) -> None:
        self.page, self.session = page, session

    def still(self) -> float:
        """Wait until the page has followed; seconds."""
        start = time.perf_counter()
        while self.page.evaluate(BUSY):
            time.sleep(0.01)
        return time.perf_counter() - start

    def open(self, i: int) -> None:
        """Open an image of the list."""
        self.page.locator("#images button", has_text=self.session.names[i]).click()
        self.still()

    def click(self, i: int, x: int, y: int) -> float:
        """Click a pixel of the image in view, which is seen as a whole; seconds until its labels follow."""
        (height, width), box = self.session.sizes[i], self.page.locator("#canvas").bounding_box()
        scale = min(box["width"] / width, box["height"] / height)
        left, top = (box["width"] - width * scale) / 2, (box["height"] - height * scale) / 2
        self.page.mouse.click(box["x"] + left + (x + 0.5) * scale, box["y"] + top + (y + 0.5) * scale)
        return self.still()


def teach(annotator: Annotator, user: User, name: str) -> list[float]:
    """Add the class and click it in each image that may be clicked, at its largest region that is not labelled so."""
    space = annotator.data.space
    class_id = space.classes.index(name)
    user.page.evaluate("color => { document.getElementById('color').value = color }", "#ff9d00")
    user.page.fill("#name", name)
    user.page.click("#add button")
    user.still()
    seconds = []
    for i in range(len(annotator.data.clicked)):
        user.open(i)
        click = largest_error(annotator.label(i), annotator.truths[i], [class_id])
        if click:
            seconds.append(user.click(i, click.x, click.y))
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clicking_page", description=__doc__)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--checkpoint", type=Path, required=True, help="trained without the class")
    parser.add_argument("--name", required=True, help="the class")
    parser.add_argument("--seed", type=int, default=0, help="draws the images that may be clicked")
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="folder of the screenshots")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    hosts, said = set[str](), list[str]()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        data = DATA[chosen.data](chosen.seed)
        place = data.space.classes.index(chosen.name)
        showing = sorted(data.clicked, key=lambda photo: -(photo[1] == place).sum())[: chosen.clicks]
        annotator = Annotator(data._replace(clicked=showing), Path(folder), start(chosen.checkpoint))
        session = annotator.session
        before = annotator.judge()
        while session.rank_one():
            pass
        with served(session, "token") as address:
            chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = chromium.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light").new_page()
            page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(address)
            user = User(page, session)
            user.still()
            seconds = teach(annotator, user, chosen.name)
            page.wait_for_timeout(3000)
            page.screenshot(path=chosen.out / "1400.png")
            page.set_viewport_size({"width": 390, "height": 844})
            page.wait_for_timeout(500)
            page.screenshot(path=chosen.out / "390.png")
            chromium.close()
        after = annotator.judge()
        session.close()
    others = [float(np.nanmean(np.delete(ious, place))) for ious in (before, after)]
    print(
        f"{chosen.name}: IoU {before[place]:.1f} -> {after[place]:.1f}, the others {others[0]:.1f} -> {others[1]:.1f}"
    )
    print("seconds until the labels followed:", ", ".join(f"{each:.2f}" for each in seconds))
    print("hosts asked:", ", ".join(sorted(hosts)), "| console:", said or "nothing")


if __name__ == "__main__":
    main()
