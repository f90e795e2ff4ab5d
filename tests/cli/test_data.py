from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from protoseg.cli.main import COMMANDS, run_tool
from protoseg.data import CAMVID, export

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """``camvid`` with a day and a dusk image: road everywhere, by day 4 pixels of car. In ``val`` one, of sky."""
    for split, name, cars, rest in (
        ("train", "0006R0_f00001", 4, 3),
        ("train", "0001TP_000001", 0, 3),
        ("val", "0016E5_000001", 0, 0),
    ):
        mask = np.full((10, 10), rest, np.uint8)
        mask.flat[:cars] = 8
        for folder, array in ((split, np.zeros((10, 10, 3), np.uint8)), (f"{split}annot", mask)):
            (tmp_path / "camvid" / folder).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(tmp_path / "camvid" / folder / f"{name}.png"), array)
    return tmp_path


def table_rows(shown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_a_list_of_images_in_which_every_class_occurs(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = data / "few.txt"
    for share, number in (("1/2", 1), ("1", 1), ("1/100", 1), ("2", 2)):
        run_tool("data", ["draw", "camvid", f"paths.data={data}", "--share", share, "--seed", "3", "--out", str(few)])
        head, *names = few.read_text().splitlines()
        assert head == f"# {number} of the 2 images of camvid: protoseg data draw camvid --share {share} --seed 3"
        assert names[-1] == "0006R0_f00001"  # the only one with cars
        assert f"{number} of 2 images: {few}" in capsys.readouterr().out
    for share in ("half", "1/0", "0", "-1/2", "1/1", "3/2", "2.7"):
        with pytest.raises(SystemExit) as error:
            run_tool("data", ["draw", "camvid", f"--share={share}", "--out", str(few)])
        assert error.value.code == 2
        assert "expected a share above 0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as refused:
        run_tool("data", ["draw", "camvid", f"paths.data={data}", "--share", "3", "--out", str(few)])
    assert "at most the 2 there are, got 3" in str(refused.value.code) + capsys.readouterr().err
    with pytest.raises(SystemExit) as several:
        run_tool("data", ["draw", "concat", *PARTS, f"paths.data={data}", "--share", "1", "--out", str(few)])
    assert "got 'concat', of several: draw of each of them" in str(several.value.code) + capsys.readouterr().err


PARTS = ("+data@data.parts.few=camvid", "+data@data.parts.judge=camvid")


def test_parts_that_are_not_trained_on_or_not_judged_by(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    halves = ("data.parts.few.val_split=null", "data.parts.judge.train_split=null", f"paths.data={data}")
    run_tool("data", ["check", "concat", *PARTS, *halves])
    shown = capsys.readouterr().out
    assert "no faults" in shown
    assert "few train" in shown
    assert "judge val" in shown
    assert "None" not in shown


def test_statistics_of_a_data_set(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_tool("data", ["stats", "camvid", f"paths.data={data}"])
    shown = capsys.readouterr().out
    assert "camvid: 2 training masks" in shown
    rows = table_rows(shown)
    # Weights 1 / sqrt(share), with mean 1 over the pixels: 1 / sqrt(f) / (sqrt(0.98) + sqrt(0.02)).
    assert ["Road", "196", "98.000", "2", "100", "0.00", "0.89"] in rows
    assert ["Car", "4", "2.000", "1", "4", "100.00", "6.25"] in rows
    assert ["Sky", "0", "0.000", "0", "0", "0.00", "6.25"] in rows
    (file,) = (data / "camvid").glob("protoseg_statistics_train_camvid_*.json")
    assert f"File: {file}" in shown
    before = file.stat().st_mtime_ns
    run_tool("data", ["stats", "camvid", f"paths.data={data}"])
    assert file.stat().st_mtime_ns == before


def test_tables_as_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_tool("data", ["info", "camvid", "--out", str(data), "--json", f"paths.data={data}"])
    shown = capsys.readouterr()
    images, classes = map(json.loads, shown.out.splitlines())  # nothing else there
    assert images["rows"][0] == {"split": "train", "images": 2, "masks": 2, "width x height": "10 x 10 (2)"}
    road = next(row for row in classes["rows"] if row["class"] == "Road")
    assert road["train: pixels %"], road["train: images"] == (98.0, 2)
    assert "camvid_classes.png" in shown.err
    run_tool("data", ["stats", "camvid", f"paths.data={data}"])
    assert "camvid: 2 training masks" in capsys.readouterr().out  # as before again


def test_statistics_of_adaptation_are_the_sources(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_tool("data", ["stats", "camvid_day_to_dusk", f"paths.data={data}", "data.source.dataset.sequences=[0006R0]"])
    assert "camvid_day_to_dusk: 1 training masks" in capsys.readouterr().out


def test_info_counts_both_splits_and_draws_them(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_tool("data", ["info", "camvid", "--out", str(data / "out"), f"paths.data={data}"])
    rows = table_rows(capsys.readouterr().out)
    assert ["train", "2", "2", "10 x 10 (2)"] in rows
    assert ["val", "1", "1", "10 x 10 (1)"] in rows
    assert ["3", "Road", "stuff", "98.000", "2", "0.000", "0"] in rows
    assert ["8", "Car", "thing", "2.000", "1", "0.000", "0"] in rows
    assert ["0", "Sky", "stuff", "0.000", "0", "100.000", "1"] in rows
    picture = np.asarray(Image.open(data / "out" / "camvid_classes.png").convert("RGB")).reshape(-1, 3)
    colors = {name: CAMVID.colors[CAMVID.classes.index(name)] for name in ("Road", "Sky", "Tree")}
    drawn = {name: int((picture == color).all(1).sum()) for name, color in colors.items()}
    assert min(drawn["Road"], drawn["Sky"]) > 1000
    assert drawn["Tree"] < 100


def test_info_of_a_target_does_not_open_its_training_masks(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mask in (data / "camvid" / "trainannot").iterdir():
        mask.write_bytes(b"not to be read")
    parts = ["data.source.train_split=val", "data.target.val_split=val"]
    drives = ["data.source.dataset.sequences=null", "data.target.dataset.sequences=null"]
    run_tool("data", ["info", "camvid_day_to_dusk", f"paths.data={data}", *parts, *drives, "--out", str(data)])
    rows = table_rows(capsys.readouterr().out)
    assert ["target train", "2", "0", "10 x 10 (2)"] in rows
    assert ["0", "Sky", "stuff", "100.000", "1", "100.000", "1"] in rows


def test_info_names_a_file_that_is_no_image(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = data / "camvid" / "train" / "0001TP_000001.png"
    bad.write_bytes(b"x")
    with pytest.raises(SystemExit):
        run_tool("data", ["info", "camvid", f"paths.data={data}"])
    assert f"image {bad}: expected a complete image file" in capsys.readouterr().err


def test_show_writes_a_sheet_of_images_and_overlays(data: Path) -> None:
    run_tool("data", ["show", "camvid", "--count", "2", "--out", str(data / "out"), f"paths.data={data}"])
    sheet = np.asarray(Image.open(data / "out" / "camvid_train.jpg")).astype(int)
    assert (data / "out" / "camvid_val.jpg").is_file()
    centres = [sheet[200, 8 + i * 428 + 210] for i in range(4)]
    road = 0.55 * np.array(CAMVID.colors[3])
    for black, overlaid in (centres[:2], centres[2:]):
        assert black.max() < 8
        assert np.abs(overlaid - road).max() < 8


def test_show_of_no_image(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_tool("data", ["show", "camvid", "--count", "0", f"paths.data={data}"])
    assert "--count: expected at least 1 image, got 0" in capsys.readouterr().err


def test_check_of_sound_data(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_tool("data", ["check", "camvid", f"paths.data={data}"])
    assert capsys.readouterr().out.splitlines() == [
        "train: 2 images and 2 masks read",
        "note: the 2 masks of train hold no pixel of 'Sky', 'Building', 'Pole', 'Sidewalk', 'Tree' and 4 more: check "
        "the ids or colours of the classes",
        "val: 1 images and 1 masks read",
        "note: the 1 masks of val hold one class alone, 'Sky', of 11: check the ids or colours of the classes",
        "no faults",
    ]


def test_nothing_labelled_is_a_fault(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cv2.imwrite(str(data / "camvid" / "valannot" / "0016E5_000001.png"), np.full((10, 10), 11, np.uint8))
    for command in ("check", "info"):
        with pytest.raises(SystemExit):
            run_tool(
                "data", [command, "camvid", f"paths.data={data}", *(["--out", str(data)] if command == "info" else [])]
            )
        shown = "".join(capsys.readouterr())
        assert "split 'val': expected labelled pixels, got 1 masks in which every pixel is ignored" in shown


def test_check_lists_all_faults_and_ends_with_1(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    camvid = data / "camvid"
    (camvid / "train" / "0001TP_000001.png").write_bytes(b"")
    (camvid / "valannot" / "0016E5_000001.png").unlink()
    with pytest.raises(SystemExit) as stop:
        run_tool("data", ["check", "camvid", f"paths.data={data}"])
    assert stop.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 2 images and 2 masks read"
    assert [line.split(":")[0] for line in lines[-3:]] == ["fault", "fault", "2 faults found"]
    assert "1 image without mask: 0016E5_000001" in lines[-3] or "image without mask: 0016E5_000001" in lines[-3]
    assert "0001TP_000001.png" in lines[-2]


def test_check_of_a_missing_split_goes_on_with_the_other(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(data / "camvid" / "train")
    (data / "camvid" / "valannot" / "0016E5_000001.png").write_bytes(b"")
    with pytest.raises(SystemExit):
        run_tool("data", ["check", "camvid", f"paths.data={data}"])
    shown = capsys.readouterr().out
    assert f"{data / 'camvid' / 'train'}, which does not exist" in shown
    assert "valannot/0016E5_000001.png" in shown
    assert "2 faults found" in shown


def test_export(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = data / "labels" / "berlin"
    labels.mkdir(parents=True)
    Image.fromarray(np.arange(19, dtype=np.uint8)[None]).save(labels / "berlin_000000_000019_leftImg8bit.png")
    run_tool("data", ["export", "cityscapes", str(data / "labels"), str(data / "out")])
    assert f"1 files for cityscapes: {data / 'out'}" in capsys.readouterr().out
    assert np.asarray(Image.open(data / "out" / "berlin_000000_000019_pred_labelIds.png"))[0, :3].tolist() == [7, 8, 11]


def test_the_command_offers_the_benchmarks_there_are() -> None:
    options = COMMANDS["data"]["commands"]["export"]["options"]
    assert [*export.FORMATS] == options["benchmark"]["choices"]


@pytest.mark.parametrize("arguments", [["info", "camvid", "--bogus", "a=b"], ["export", "ade20k", "a", "b", "c=d"]])
def test_unknown_options_end_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_tool("data", arguments)
    assert stop.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["camvdi"], "unknown data 'camvdi'. Did you mean 'camvid'"),
        (["camvid", "data.roo=x"], "Did you mean 'data.root'"),
        (["camvid", "data.root=/nowhere"], "expected the folder /nowhere/train, which does not exist"),
    ],
)
def test_wrong_input_is_one_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_tool("data", ["stats", *arguments])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")


@pytest.mark.slow
def test_it_runs_as_a_module(data: Path) -> None:
    command = [sys.executable, "-m", "protoseg", "data", "stats", "camvid", f"paths.data={data}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "training masks" in result.stdout
