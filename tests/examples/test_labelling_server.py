"""The page to click on is for its own address alone, and what it is told is data."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aiohttp import ClientResponse, ClientSession, web
from PIL import Image

from examples.labelling_page import server as labelling
from examples.labelling_page.clicks import NONE, Session
from examples.labelling_page.evidence import blank_file
from examples.labelling_page.server import make_app, serve
from protoseg.models.encoders import TimmEncoder
from protoseg.types import ProtosegError

TOKEN = "secret"
ODD = "<img src=x onerror=alert(1)>\"'&\n.png"
Ask = Callable[..., Awaitable[tuple[int, Any, ClientResponse]]]


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    images = tmp_path / "images"
    images.mkdir()
    for name, color in ((ODD, "red"), ("b.png", "blue"), ("c.jpg", "green")):
        Image.new("RGB", (60, 40), color).save(images / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (60, 40), "white").save(images / "d.jpg", exif=turned)
    (images / "e.png").write_text("no image")
    torch.manual_seed(0)
    name = {"name": "test_efficientnet"}
    file = blank_file("encoder", {"_target_": "protoseg.models.encoders.TimmEncoder", **name}, TimmEncoder(**name))
    found = Session(file, images, tmp_path / "out")
    yield found
    found.close()


def asked(session: Session, talk: Callable[[Ask, int], Awaitable[None]]) -> None:
    """Let ``talk`` ask a server of the session: ``await ask("GET", "/state")`` gives status, JSON or bytes, answer."""

    async def run() -> None:
        server = socket.create_server(("127.0.0.1", 0))
        port = server.getsockname()[1]
        runner = web.AppRunner(make_app(session, port, TOKEN))
        await runner.setup()
        await web.SockSite(runner, server).start()

        async def ask(method: str, path: str, said: Any = None, **headers: str) -> tuple[int, Any, ClientResponse]:
            headers = {"X-Protoseg-Token": TOKEN, **{k.replace("_", "-"): v for k, v in headers.items()}}
            async with ClientSession() as client:
                of = {"json": said} if said is not None else {}
                url = f"http://127.0.0.1:{port}{path}"
                async with client.request(method, url, headers=headers, **of) as answer:
                    body = await answer.read()
                    plain = answer.content_type == "application/json"
                    return answer.status, json.loads(body) if plain else body, answer

        try:
            await talk(ask, port)
        finally:
            await runner.cleanup()

    asyncio.run(run())


def test_only_its_own_address_is_answered(session: Session) -> None:
    async def talk(ask: Ask, port: int) -> None:
        said = {"name": "stolen"}
        for headers in (
            {"X_Protoseg_Token": "wrong"},
            {"X_Protoseg_Token": ""},
            {"X_Protoseg_Token": "sécret"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": f"http://127.0.0.1:{port + 1}"},
            {"Origin": f"https://127.0.0.1:{port}"},
            {"Host": f"evil.example:{port}"},
            {"Host": "127.0.0.1"},
            {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"},
        ):
            for method, path in (("POST", "/class"), ("GET", "/state"), ("GET", "/"), ("GET", "/image/0")):
                status, answer, _ = await ask(method, path, said if method == "POST" else None, **headers)
                assert (status, "expected the address" in answer["error"]) == (403, True), (headers, path)
        assert session.space.num_classes == 0
        for headers in ({}, {"Origin": f"http://127.0.0.1:{port}"}, {"Host": f"localhost:{port}"}):
            assert (await ask("GET", "/state", **headers))[0] == 200
        assert (await ask("GET", f"/image/0?token={TOKEN}", X_Protoseg_Token=""))[0] == 200
        assert (await ask("POST", "/class", said, Origin=f"http://127.0.0.1:{port}"))[1]["id"] == 0
        assert (await ask("OPTIONS", "/class", Origin="http://evil.example"))[0] == 403

    asked(session, talk)


def test_every_answer_says_what_a_page_may_do(session: Session) -> None:
    async def talk(ask: Ask, port: int) -> None:
        for path in ("/", "/state", "/image/1", "/labels/1", "/thumb/1", "/worth/1", "/nowhere", "/image/99"):
            headers = (await ask("GET", path))[2].headers
            assert headers["Content-Security-Policy"].startswith("default-src 'self'")
            assert headers["Cache-Control"] == "no-store"
            assert "Access-Control-Allow-Origin" not in headers

    asked(session, talk)


def test_paths_lead_nowhere_else(session: Session) -> None:
    async def talk(ask: Ask, port: int) -> None:
        for path in (
            "/../pyproject.toml", "/%2e%2e/labelling.py", "/page.html", "/image/..%2f..%2fetc", "/image/-1",
            "/image/0/../../x", "/labels/1e3", "/image/99", "/page.js/../../page.py", "/clicks.jsonl",
        ):  # fmt: skip
            status, answer, _ = await ask("GET", path)
            assert status in (400, 404), path
            assert isinstance(answer["error"], str)

    asked(session, talk)


def test_a_talk_from_state_to_saved(session: Session) -> None:
    async def talk(ask: Ask, port: int) -> None:
        status, state, _ = await ask("GET", "/state")
        assert status == 200
        assert [image["name"] for image in state["images"]] == session.names
        assert ODD in session.names
        assert state["images"][4]["error"].startswith("image ")
        assert [(image["width"], image["height"]) for image in state["images"][2:4]] == [(60, 40), (40, 60)]
        assert sorted(state["order"]) == [0, 1, 2, 3]
        names = ["a <b>\"'\n&", "b"]
        for i, name in enumerate(names):
            assert (await ask("POST", "/class", {"name": name, "color": None}))[1]["id"] == i
        for image, class_id in ((0, 0), (1, 1)):
            click = {"image": image, "x": 20, "y": 10, "class": class_id, "not": False}
            status, answer, _ = await ask("POST", "/click", click)
            assert (status, answer.keys()) == (200, {"version", "milliseconds", "changed"})
        body, answer = (await ask("GET", "/labels/3"))[1:]
        labels = Image.open(io.BytesIO(body))
        assert (labels.mode, labels.size, answer.content_type) == ("L", (40, 60), "image/png")
        assert (np.array(labels) == session.labels(3)).all()
        assert answer.headers["ETag"] == f'"{session.version}"'
        photo = Image.open(io.BytesIO((await ask("GET", "/image/3"))[1]))
        assert photo.size == (40, 60)
        assert max(Image.open(io.BytesIO((await ask("GET", "/thumb/0"))[1])).size) <= 160
        worth = (await ask("GET", "/worth/0"))[1]
        assert worth["clicks"] == [[20, 10, 0, 0]]
        assert (await ask("POST", "/stroke", {"image": 2, "points": [[5, 5]], "radius": 4, "class": 1}))[0] == 200
        assert (await ask("POST", "/correct", {"image": 2, "stroke": [[9, 9]], "radius": 2, "class": NONE}))[0] == 200
        polygon = [[0, 0], [9, 0], [9, 9]]
        assert (await ask("POST", "/correct", {"image": 2, "polygon": polygon, "class": 0}))[0] == 200
        assert (await ask("POST", "/done", {"image": 2, "done": True}))[0] == 200
        assert (await ask("POST", "/undo", {}))[0] == (await ask("POST", "/redo", {}))[0] == 200
        state = (await ask("GET", "/state"))[1]
        assert [each["name"] for each in state["classes"]] == names
        assert [image["done"] for image in state["images"]] == [False, False, True, False, False]
        assert [image["clicks"] for image in state["images"]] == [1, 1, 4, 0, 0]
        assert (state["undo"], state["redo"], state["version"]) == (True, False, session.version)
        assert all(each["pixels"] > 0 and each["prototypes"] == 1 and not each["own"] for each in state["classes"])
        written = (await ask("POST", "/save", {}))[1]
        assert all(Path(written[key]).exists() for key in ("checkpoint", "folder", "coco", "labelme"))

    asked(session, talk)


def test_images_are_ranked_meanwhile(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "IDLE", 0.0)

    async def talk(ask: Ask, port: int) -> None:
        end = time.monotonic() + 30
        while (await ask("GET", "/state"))[1]["ranked"] < 4:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)

    asked(session, talk)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/click", {"image": 0, "x": 1, "y": 1, "class": 7}),
        ("/click", {"image": -1, "x": 1, "y": 1, "class": 0}),
        ("/click", {"image": True, "x": 1, "y": 1, "class": 0}),
        ("/click", {"image": 0, "x": 1, "y": 1, "class": -1}),
        ("/click", {"image": 0, "x": "1", "y": 1, "class": 0}),
        ("/click", {"image": 0, "x": 1e9, "y": 1, "class": 0}),
        ("/click", {"image": 4, "x": 0, "y": 0, "class": 0}),
        ("/click", [1]),
        ("/click", {}),
        ("/stroke", {"image": 0, "points": "abc", "radius": 1, "class": 0}),
        ("/stroke", {"image": 0, "points": [[1, 2, 3]], "radius": 1, "class": 0}),
        ("/stroke", {"image": 0, "points": [[1, 1]], "radius": [], "class": 0}),
        ("/stroke", {"image": 0, "points": [[1, 1]], "radius": 1e300, "class": 0}),
        ("/correct", {"image": 0, "polygon": [[1, 1]], "class": 0}),
        ("/class", {"name": "a"}),
        ("/class", {"name": "b", "color": "red"}),
        ("/class", {"name": "b", "color": [[1], 2, 3]}),
        ("/redo", {}),
    ],
)
def test_what_makes_no_sense_changes_nothing(session: Session, path: str, said: Any) -> None:
    session.add_class("a")

    async def talk(ask: Ask, port: int) -> None:
        status, answer, _ = await ask("POST", path, said)
        assert status == 400
        assert re.match(r".*expected .+", answer["error"])

    asked(session, talk)
    assert len(session.actions) == 1


def test_a_full_disk_is_507_and_the_action_counts(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def talk(ask: Ask, port: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            status, answer, _ = await ask("POST", "/class", {"name": "a"})
        assert status == 507
        assert "No space left" in answer["error"]
        assert [each["name"] for each in (await ask("GET", "/state"))[1]["classes"]] == ["a"]

    asked(session, talk)


def test_a_page_to_look_at_takes_no_action(session: Session) -> None:
    session.add_class("a")
    onlooker = Session(session.file, session.paths[0].parent, session.out, read_only=True)

    async def talk(ask: Ask, port: int) -> None:
        status, answer, _ = await ask("POST", "/class", {"name": "b"})
        assert (status, "--read-only" in answer["error"]) == (403, True)
        state = (await ask("GET", "/state"))[1]
        assert state["read_only"]
        assert len(state["classes"]) == 1

    asked(onlooker, talk)
    onlooker.close()


def test_it_listens_on_this_machine_alone(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    found: dict[str, Any] = {}
    monkeypatch.setattr(labelling.webbrowser, "open", opened.append)
    monkeypatch.setattr(labelling.web, "run_app", lambda app, sock, print: found.update(sock=sock, app=app))
    serve(session, 0, show=True)
    address, port = found["sock"].getsockname()
    assert address == "127.0.0.1"
    assert re.fullmatch(rf"http://127\.0\.0\.1:{port}/\?token=[\w-]{{20,}}", opened[0])
    assert opened[0] in capsys.readouterr().out
    with pytest.raises(ProtosegError, match="--port: expected a free one"):
        serve(session, port, show=False)
    found["sock"].close()
    assert len(opened) == 1
