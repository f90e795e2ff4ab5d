"""The page to click on: a server for this machine alone, whose answers are those of a session of clicks.

No page but its own can use it: a request names the token of the address it was opened by, the host it goes to and, if
any, the page it comes from; others are refused (sites open in the same browser, or that call this machine their host).
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import io
import secrets
import socket
import threading
import time
import webbrowser
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from aiohttp import web
from PIL import Image

from protoseg.evaluation.pictures import as_picture, overlay
from protoseg.text import say
from protoseg.types import IGNORE_INDEX, ProtosegError

from .clicks import NONE, Session

FILES = Path(__file__).with_name("page")
OPEN = ("/page.js", "/view.js", "/lists.js", "/page.css")  # to whoever asks: nothing in them is the user's
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
IDLE = 1.0  # seconds without an action before the next image is ranked
THUMB = 160  # pixels
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ACTIONS: dict[str, Callable[..., Any]] = {
    **{"click": Session.click, "stroke": Session.stroke, "done": Session.accept, "class": Session.add_class},
    "correct": lambda session, i, class_id, polygon=None, stroke=None, radius=None: session.correct(
        i, polygon or stroke, None if polygon else radius, class_id
    ),
    **{"undo": lambda session: session.act({"do": "undo"}), "redo": lambda session: session.act({"do": "redo"})},
    "save": Session.save,
}
CALLED = {"image": "i", "class": "class_id", "not": "is_not"}  # what requests call arguments of these


def make_app(session: Session, port: int, token: str) -> web.Application:
    """The server of a session at a port; what it is asked and answers is in ``docs/label.md``."""
    hosts, acted = {f"127.0.0.1:{port}", f"localhost:{port}"}, [0.0]

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-Protoseg-Token") or request.query.get("token", "")
        home = request.host in hosts and request.headers.get("Origin") in (None, f"http://{request.host}")
        try:
            if not home or not (request.path in OPEN or hmac.compare_digest(given.encode(), token.encode())):
                raise web.HTTPForbidden(
                    text="expected the address that examples.labelling_page printed, with its token"
                )
            if request.method == "POST" and session.read_only:
                raise web.HTTPForbidden(text="expected a page that writes, got one of --read-only")
            answer = await handler(request)
        except web.HTTPException as error:
            answer = web.json_response({"error": error.text or error.reason}, status=error.status)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
            full = getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            text = (
                str(error)
                if isinstance(error, ProtosegError)
                else f"expected what the page asks, got other ({error!r})"
            )
            answer = web.json_response({"error": text}, status=507 if full else 400)
        answer.headers.update(HEADERS)
        return answer

    async def page(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(FILES / (request.path.strip("/") or "page.html"))

    async def look(request: web.Request) -> web.StreamResponse:
        arguments = [_image(session, int(i)) for i in request.match_info.values() if i.isdigit()]
        return await asyncio.to_thread(LOOKS[request.path.split("/")[1]], session, *arguments)

    async def act(request: web.Request) -> web.StreamResponse:
        said, acted[0] = await request.json(), time.monotonic()
        _image(session, said.get("image", 0))
        if type(said.get("class", 0)) is not int or said.get("class", 0) < 0:
            raise ProtosegError(f"class: expected its number, got {said['class']!r}")
        arguments = {CALLED.get(name, name): value for name, value in said.items()}
        made = await asyncio.to_thread(ACTIONS[request.path[1:]], session, **arguments)
        answer = made if isinstance(made, dict) else {"id": made} if isinstance(made, int) else {}
        if made is None:
            answer["changed"] = await asyncio.to_thread(session.changed, said.get("image"))
        more = {"version": session.version, "milliseconds": round(1000 * (time.monotonic() - acted[0]))}
        return web.json_response(answer | more)

    async def ranking(app: web.Application) -> AsyncIterator[None]:
        stop = threading.Event()

        def rank() -> None:
            with suppress(ProtosegError):  # told at the first click
                session.known()
            while not stop.is_set():
                if time.monotonic() < acted[0] + IDLE or not session.rank_one():
                    stop.wait(0.2)

        thread = threading.Thread(target=rank)
        thread.start()
        yield
        stop.set()
        thread.join()

    app = web.Application(middlewares=[guard])
    app.add_routes([web.get(path, page) for path in ("/", *OPEN)] + [web.get("/state", look)])
    app.add_routes([web.get(rf"/{kind}/{{i:\d+}}", look) for kind in LOOKS if kind != "state"])
    app.add_routes([web.post(f"/{name}", act) for name in ACTIONS])
    app.cleanup_ctx.append(ranking)
    return app


def _image(session: Session, i: Any) -> int:
    if type(i) is not int or not 0 <= i < len(session.names):
        raise ProtosegError(f"image: expected a number below {len(session.names)}, got {i!r}")
    return i


def _state(session: Session) -> web.Response:
    """What the page shows beside pictures."""
    with session.lock:
        space, done, ranked, cells = session.space, session.done, dict(session.ranked), Counter[int]()
        clicks = Counter(action["image"] for action in session.actions if "image" in action)
        for i in session.clicked:
            cells.update(session.evidence(i).ravel().tolist())
        own, memory = 0 if session.blank else session.file.label_space.num_classes, session.model.head.memory
        images: list[dict[str, Any]] = [
            {"id": i, "name": name, "width": width, "height": height, "error": session.errors.get(i)}
            | {"clicks": clicks[name], "done": name in done, "doubt": ranked[i][1] if i in ranked else None}
            for i, (name, (height, width)) in enumerate(zip(session.names, session.sizes, strict=True))
        ]
        classes: list[dict[str, Any]] = [
            {"id": c, "name": name, "color": [*color], "pixels": cells[c] * session.model.stride**2, "own": c < own}
            | {"prototypes": memory.prototypes.shape[1] if memory and c < own else int(c < own or cells[c] > 0)}
            for c, (name, color) in enumerate(zip(space.classes, space.colors, strict=True))
        ]
        of_all = {"title": session.out.name, "read_only": session.read_only, "version": session.version}
        of_all |= {"undo": bool(session.actions), "redo": bool(session.undone), "ranked": len(ranked)}
        return web.json_response(of_all | {"order": session.order(), "images": images, "classes": classes})


def _photo(session: Session, i: int) -> web.Response:
    return _picture(as_picture(session.image(i), session.space.shown), "JPEG", quality=92)


def _labels(session: Session, i: int) -> web.Response:
    answer = _picture(session.labels(i), "PNG", compress_level=1)
    answer.etag = str(session.version)
    return answer


def _thumb(session: Session, i: int) -> web.Response:
    photo, label = as_picture(session.image(i), session.space.shown), session.labels(i)
    size = [max(1, round(side * min(1, THUMB / max(label.shape)))) for side in label.shape[::-1]]
    small = torch.from_numpy(cv2.resize(photo, size, interpolation=cv2.INTER_AREA)).permute(2, 0, 1)
    ids = torch.from_numpy(cv2.resize(label, size, interpolation=cv2.INTER_NEAREST).astype(np.int64))
    return _picture(overlay(small, ids.where(ids != NONE, IGNORE_INDEX), session.space), "JPEG", quality=80)


def _worth(session: Session, i: int) -> web.Response:
    clicks = [action for action in session.of(i, "teach") if "at" in action]
    of = [session.space.classes.index(action.get("not", action["class"])) for action in clicks]
    said = [(*action["at"], c, int("not" in action)) for action, c in zip(clicks, of, strict=True)]
    return web.json_response({"points": session.worth(i)[1], "clicks": said})


LOOKS: dict[str, Any] = {"state": _state, "image": _photo, "labels": _labels, "thumb": _thumb, "worth": _worth}


def _picture(pixels: Any, kind: str, **options: Any) -> web.Response:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return web.Response(body=file.getvalue(), content_type=f"image/{kind.lower()}")


@contextmanager
def served(session: Session, token: str) -> Iterator[str]:
    """The page's address, at a port that is free, while a thread serves it."""
    loop, place = asyncio.new_event_loop(), socket.create_server(("127.0.0.1", 0))
    port = place.getsockname()[1]
    runner = web.AppRunner(make_app(session, port, token))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> None:
        await runner.setup()
        await web.SockSite(runner, place).start()

    asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    try:
        yield f"http://127.0.0.1:{port}/?token={token}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def serve(session: Session, port: int, show: bool) -> None:
    """Print the page's address, open it in a browser, and serve it until Ctrl-C; raises ProtosegError: no such port."""
    try:
        server = socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise ProtosegError(f"--port: expected a free one, got {port} ({error}): leave it out") from error
    port, token = server.getsockname()[1], secrets.token_urlsafe(16)
    address = f"http://127.0.0.1:{port}/?token={token}"
    say(f"{len(session.names)} images; what is done is kept in {session.out}; Ctrl-C ends. Open {address}")
    if show:
        webbrowser.open(address)
    web.run_app(make_app(session, port, token), sock=server, print=None)
