"""The renderer of street scenes: its labels, its repeatability and its files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from protoseg.cli.main import COMMANDS, run_tool
from protoseg.data import CAMVID, LabelledFolder
from protoseg.data.label_spaces import CITYSCAPES
from protoseg.render import RenderSettings, labels, mesh, render_dataset, render_sample, vehicles
from protoseg.render.engine import missing_panda3d
from protoseg.render.street import draw_street
from protoseg.render.weather import STYLES
from protoseg.types import ProtosegError

SMALL = RenderSettings(width=160, height=120)


@pytest.fixture(scope="module")
def needs_panda3d() -> None:
    pytest.importorskip("panda3d", reason="needs pip install 'protoseg[render]'")
    try:
        render_sample(SMALL, 0)
    except ProtosegError as error:
        pytest.skip(str(error))


def outward(shape: mesh.Mesh) -> float:
    """Share of the normals that point away from the middle."""
    points, normals = shape.vertices[:, :3], shape.vertices[:, 3:6]
    return float((((points - points.mean(0)) * normals).sum(1) > -1e-5).mean())


SURFACE = mesh.Surface(labels.CAR, (1, 1, 1))
SHAPES = {
    "box": mesh.box((1, 2, 3), (5, 0, 0), SURFACE),
    "tube": mesh.tube([(0, 0, 0), (1, 0, 1)], 0.2, SURFACE),
    "ellipsoid": mesh.ellipsoid((0, 0, 3), (1, 2, 3), SURFACE),
    "plate": mesh.plate([(-1, -1), (1, -1), (1, 1), (-1, 1)], 0.1, SURFACE),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_face_outward(name: str) -> None:
    """What faces away from the camera is not drawn: an inverted shape would be a hole in picture and label."""
    shape = SHAPES[name]
    assert outward(shape) == 1
    assert outward(shape.placed((3, 4, 5), yaw=2, pitch=0.3)) == 1
    corners = shape.vertices[shape.triangles]
    faces = np.cross(corners[:, 1, :3] - corners[:, 0, :3], corners[:, 2, :3] - corners[:, 0, :3])
    assert ((faces * corners[:, 0, 3:6]).sum(1) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(shape.vertices[:, 3:6], axis=1), 1, rtol=1e-4)


def test_join_keeps_the_triangles() -> None:
    first, second = SHAPES["box"], SHAPES["tube"]
    both = mesh.join([first, second])
    corners = np.concatenate([part.vertices[part.triangles] for part in (first, second)])
    np.testing.assert_array_equal(both.vertices[both.triangles], corners)


@pytest.mark.parametrize(
    ("build", "label", "size"),
    [
        (vehicles.car, labels.CAR, (1.6, 3.8, 1.4)),
        (vehicles.lorry, labels.TRUCK, (2.4, 5.4, 2.8)),
        (vehicles.bus, labels.BUS, (2.4, 9.4, 3.0)),
        (vehicles.bicycle, labels.BICYCLE, (0.4, 1.6, 0.9)),
    ],
)
def test_vehicles_stand_on_the_ground(build, label, size) -> None:  # type: ignore[no-untyped-def]
    for seed in range(8):
        vertices = build(np.random.default_rng(seed)).vertices
        assert set(vertices[:, 14]) == {label}
        extent = np.ptp(vertices[:, :3], axis=0)
        assert (extent > size).all()
        assert (extent < np.multiply(size, (1.6, 1.8, 1.6))).all()
        assert abs(vertices[:, 2].min()) < 0.06


@pytest.mark.slow
def test_streets_hold_every_class_and_repeat() -> None:
    seen: set[int] = set()
    for index in range(12):
        street = draw_street(np.random.default_rng([0, index, 0]), lit=True)
        assert np.isfinite(street.mesh.vertices).all()
        assert street.mesh.triangles.max() < len(street.mesh.vertices)
        seen |= set(street.mesh.vertices[:, 14].astype(int))
    # The sky is the engine's; there are no trains and no motorcycles.
    assert seen == set(range(labels.VOID + 1)) - {labels.SKY, labels.TRAIN, labels.MOTORCYCLE}
    again = draw_street(np.random.default_rng([0, 11, 0]), lit=True)
    np.testing.assert_array_equal(again.mesh.vertices, street.mesh.vertices)
    dark = draw_street(np.random.default_rng([0, 11, 0]), lit=False)
    np.testing.assert_array_equal(dark.mesh.vertices[:, :3], street.mesh.vertices[:, :3])


def test_label_formats() -> None:
    camvid, cityscapes = labels.FORMATS["camvid"], labels.FORMATS["cityscapes"]
    assert [cityscapes.table[i] for i in range(19)] == list(range(19))
    assert cityscapes.table[labels.VOID] == 255
    assert camvid.table[labels.VOID] == 11
    named = {CITYSCAPES.classes[i]: CAMVID.classes[camvid.table[i]] for i in range(19)}
    assert named["wall"] == "Building"
    assert named["truck"] == named["bus"] == named["car"] == "Car"
    assert named["rider"] == named["bicycle"] == "Bicyclist"
    assert named["vegetation"] == named["terrain"] == "Tree"


@pytest.mark.usefixtures("needs_panda3d")
class TestDrawing:
    @pytest.mark.parametrize("style", STYLES)
    def test_pictures(self, style: str) -> None:
        settings = RenderSettings(style, 160, 120, labels="cityscapes")
        image, label = render_sample(settings, 3)
        assert image.shape == (120, 160, 3)
        assert image.dtype == label.dtype == np.uint8
        assert label.shape == (120, 160)
        assert image.std() > 8
        assert {0, 10} < set(np.unique(label)) <= {*range(19), 255}
        assert (label[-10:] == 0).mean() > 0.3  # the road begins at the camera's feet

    def test_same_seed_same_pixels(self) -> None:
        first = render_sample(SMALL, 5)
        render_sample(RenderSettings("rain", 160, 120, seed=9), 1)
        for one, two in zip(first, render_sample(SMALL, 5), strict=True):
            np.testing.assert_array_equal(one, two)
        other_seed, other_index = (
            render_sample(RenderSettings(width=160, height=120, seed=1), 5),
            render_sample(SMALL, 6),
        )
        assert (other_seed[1] != first[1]).any()
        assert (other_index[1] != first[1]).any()

    def test_labels_do_not_depend_on_the_weather(self) -> None:
        day = render_sample(SMALL, 2)
        fog = render_sample(RenderSettings("fog", 160, 120), 2)
        np.testing.assert_array_equal(day[1], fog[1])
        assert (day[0] != fog[0]).mean() > 0.9

    def test_label_and_picture_agree(self) -> None:
        """Edges of the labels lie on edges of the picture: by day the sky is brighter than what stands before it."""
        image, label = render_sample(RenderSettings(width=320, height=240), 0)
        sky = (label == CAMVID.classes.index("Sky")).astype(np.uint8)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
        inside = cv2.erode(sky, np.ones((3, 3))) > 0
        outside = (cv2.dilate(sky, np.ones((3, 3))) == 0) & (cv2.dilate(sky, np.ones((7, 7))) > 0)
        assert grey[inside].mean() > grey[outside].mean() + 30

        def step(shift: int) -> float:
            moved = np.roll(sky, shift, axis=1) > 0
            return float(grey[moved].mean() - grey[~moved].mean())

        assert max(range(-3, 4), key=step) == 0

    @pytest.mark.slow  # 15 s; test_streets_hold_every_class_and_repeat draws too
    def test_files(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "söme where"
        arguments = ["render", "--size", "160x120", "--seed", "4", "--workers", "2", str(out)]
        run_tool("data", [*arguments, "--count", "2"])
        assert str(out) in capsys.readouterr().out
        drawn = {path.name: path.read_bytes() for path in out.rglob("*.*") if path.suffix in (".jpg", ".png")}
        assert sorted(drawn) == [f"{i:06}.{end}" for i in range(2) for end in ("jpg", "png")]
        label = np.asarray(Image.open(out / "labels" / "000000.png"))
        np.testing.assert_array_equal(label, render_sample(RenderSettings(width=160, height=120, seed=4), 0)[1])

        # What is missing is drawn again, the same; what is there stays.
        (out / "labels" / "000001.png").unlink()
        (out / "images" / "000000.jpg").write_bytes(b"kept")
        settings = RenderSettings(width=160, height=120, seed=4)
        assert list(render_dataset(out, 4, settings, workers=1)) == [1, 2, 3, 4]
        assert (out / "labels" / "000001.png").read_bytes() == drawn["000001.png"]
        assert (out / "images" / "000001.jpg").read_bytes() == drawn["000001.jpg"]
        assert (out / "images" / "000000.jpg").read_bytes() == b"kept"
        assert not list(out.rglob("*.partial*"))

        (out / "images" / "000000.jpg").write_bytes(drawn["000000.jpg"])
        dataset = LabelledFolder(out, out / "classes.yaml", val_share=0.25)
        assert dataset.label_space.classes == CAMVID.classes
        assert dataset.label_space.colors == CAMVID.colors
        assert len(dataset) == 3
        image, read = dataset.read(0)
        assert image.shape == (120, 160, 3)
        assert set(np.unique(read)) <= {*range(11), 255}

        with pytest.raises(SystemExit):
            run_tool("data", ["render", "--size", "160x120", "--seed", "5", str(out)])
        assert "expected pictures of style day, width 160, height 120, seed 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"style": "snow"}, "style out of day, dusk, fog, rain, got 'snow'"),
        ({"labels": "ade20k"}, "labels out of camvid, cityscapes, got 'ade20k'"),
        ({"width": 20}, "sides from 64 to 4096 pixels, got 20x480"),
        ({"seed": -1}, "seed of 0 or more, got -1"),
    ],
)
def test_wrong_settings(arguments: dict, message: str) -> None:
    with pytest.raises(ProtosegError, match=message):
        RenderSettings(**arguments)


def test_wrong_counts(tmp_path: Path) -> None:
    with pytest.raises(ProtosegError, match="at least 1 picture and 1 worker, got 0 and 1"):
        next(render_dataset(tmp_path / "out", 0, SMALL, 1))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("needs_panda3d")
def test_other_peoples_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ProtosegError, match="a new folder or one of the renderer"):
        next(render_dataset(tmp_path, 1, SMALL, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_without_panda3d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("protoseg.render.writing.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        run_tool("data", ["render", str(tmp_path / "out")])
    assert stop.value.code == 1
    assert "pip install 'protoseg[render]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert "pip install" in str(missing_panda3d("why"))


def test_the_command_offers_what_there_is() -> None:
    """The command repeats the names, so as not to import the renderer for ``--help``."""
    options = COMMANDS["data"]["commands"]["render"]["options"]
    assert options["--style"]["choices"] == [*STYLES]
    assert set(options["--labels"]["choices"]) == set(labels.FORMATS)
