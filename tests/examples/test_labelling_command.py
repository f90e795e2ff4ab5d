"""``protoseg teach page`` and ``replay``: what they serve, make again and refuse; and that a wheel has them."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch

from examples.labelling_page.clicks import Session
from protoseg.checkpoint import checkpoint_label_space, read_checkpoint, save_checkpoint
from protoseg.cli.main import main
from protoseg.run import teach
from protoseg.trained import open_file
from protoseg.types import ProtosegError
from tests.teach import conftest as made

PAGE, REPLAY = ("teach", "page"), ("teach", "replay")

base = made.base
make_checkpoint = made.make_checkpoint
patches = made.patches


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Session, int, bool]]:
    """What the command would serve; a class ``weed`` is clicked there at once."""
    found: list[tuple[Session, int, bool]] = []

    def serve(session: Session, port: int, show: bool) -> None:
        found.append((session, port, show))
        session.click(0, 5, 5, session.add_class("weed"))
        session.click(1, 5, 5, session.add_class("soil"))

    monkeypatch.setattr("examples.labelling_page.commands.serve", serve)
    return found


def test_a_checkpoint_without_statistics_is_told_of(
    base: Path, patches: tuple[Path, Path], served: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = read_checkpoint(base)
    del content["protoseg"]["statistics"]
    save_checkpoint(content, tmp_path / "plain.ckpt")
    for path, told in ((base, False), (tmp_path / "plain.ckpt", True)):
        main([*PAGE, str(path), str(patches[0]), "--no-open", "--out", str(tmp_path / path.stem)])
        said = " ".join(capsys.readouterr().err.split())
        assert told is ("has no statistics of its training images" in said)
    assert len(served) == 2


def test_page_and_replay(base: Path, patches: tuple[Path, Path], served: list, tmp_path: Path) -> None:
    main([*PAGE, str(base), str(patches[0]), "--no-open", "--port", "0"])
    session, port, show = served[0]
    assert (port, show, session.out) == (0, False, patches[0].with_name("images_labels"))
    out = tmp_path / "again.ckpt"
    main([*REPLAY, str(session.out / "clicks.jsonl"), "--out", str(out)])
    assert checkpoint_label_space(read_checkpoint(out)).classes[-2:] == ("weed", "soil")


def test_a_dot_in_a_folders_name_stays(base: Path, patches: tuple[Path, Path], served: list, tmp_path: Path) -> None:
    for day in ("2024.05.01", "2024.05.02"):
        shutil.copytree(patches[0], tmp_path / day)
        main([*PAGE, str(base), str(tmp_path / day), "--no-open"])
    assert [session.out.name for session, *_ in served] == ["2024.05.01_labels", "2024.05.02_labels"]


@pytest.mark.slow
def test_page_of_an_encoder(patches: tuple[Path, Path], served: list, tmp_path: Path) -> None:
    main([*PAGE, "--encoder", "tf_efficientnet_lite0", str(patches[0]), "--out", str(tmp_path / "o")])
    assert served[0][0].space.classes == ("weed", "soil")
    out = tmp_path / "again.ckpt"
    main([*REPLAY, str(tmp_path / "o" / "clicks.jsonl"), "--out", str(out)])
    assert checkpoint_label_space(read_checkpoint(out)).classes == ("weed", "soil")
    assert open_file(out).model().eval()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).logits.shape == (1, 2, 16, 16)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["IMAGES"], "expected a checkpoint and a folder of images, got "),
        (
            ["BASE", "IMAGES", "--encoder", "tf_efficientnet_lite0"],
            "expected a folder of images beside --encoder, got ",
        ),
        (["nothing.ckpt", "IMAGES"], "no file at "),
        (["IMAGES", "--encoder", "nothing"], "nothing"),
        (["BASE", "nowhere"], "expected a folder with images"),
    ],
)
def test_page_needs_a_network_and_images(
    base: Path,
    patches: tuple[Path, Path],
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    served: list,
) -> None:
    places = {"BASE": str(base), "IMAGES": str(patches[0])}
    with pytest.raises(SystemExit) as stopped:
        main([*PAGE, *(places.get(word, word) for word in words)])
    assert stopped.value.code == 1
    assert said in capsys.readouterr().err
    assert not served


def test_page_names_what_is_not_installed(
    base: Path, patches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("protoseg.types.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main([*PAGE, str(base), str(patches[0])])
    assert "pip install 'protoseg[page]'" in capsys.readouterr().err


def test_a_wheel_has_the_application_where_the_command_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"examples/labelling_page" = "protoseg/labelling_page"' in project
    asked: list[str] = []
    monkeypatch.setattr("protoseg.run.teach.find_spec", lambda name: name)
    monkeypatch.setattr("protoseg.run.teach.import_module", asked.append)
    with pytest.raises(AttributeError):
        teach.page()
    assert asked == ["protoseg.labelling_page.commands"]


def test_clicks_on_another_folder_are_not_taken(base: Path, patches: tuple[Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(patches[0], tmp_path / "other")
    with closing(Session(open_file(base), patches[0], tmp_path / "out")) as session:
        session.click(0, 5, 5, session.add_class("weed"))
    with pytest.raises(ProtosegError, match=rf"got others \(on {patches[0]}\): put back .* --out"):
        Session(open_file(base), other, tmp_path / "out")
    (tmp_path / "link").symlink_to(patches[0])
    with closing(Session(open_file(base), tmp_path / "link", tmp_path / "out")) as again:
        assert again.space.classes[-1] == "weed"
    shutil.rmtree(patches[0])  # moved
    (tmp_path / "link").unlink()
    with closing(Session(open_file(base), other, tmp_path / "out")) as again:
        assert again.space.classes[-1] == "weed"
