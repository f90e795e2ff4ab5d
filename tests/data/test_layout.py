"""Public data sets that are described by patterns: what is found, and what the pixels of their masks mean."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.io
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torchvision.models.segmentation import FCN_ResNet50_Weights

from protoseg.data import CAMVID, CITYSCAPES, GTA5, Cityscapes, LayoutDataset, SegmentationDataModule
from protoseg.data.checking import listing_faults
from protoseg.data.export import pack
from protoseg.data.label_spaces import column, read_classes, read_colors, read_ids
from protoseg.data.layout import matching, read_names
from protoseg.types import ProtosegError
from tests.data.layout_trees import TREES, fabricate, overrides
from tests.data.test_data_conf import composed


@cache
def _config(name: str, *settings: str) -> DictConfig:
    return composed(TREES[name].config or name, *overrides(name), *settings)


def module(name: str, root: Path, *settings: str) -> SegmentationDataModule:
    """The DataModule of ``data=NAME``, as a training makes it."""
    return instantiate(_config(name, *settings), root=str(root))


def ids_of(names: np.ndarray, classes: tuple[str, ...], void: int) -> np.ndarray:
    return np.vectorize(lambda name: void if name is None else classes.index(name), otypes=[int])(names)


@pytest.mark.parametrize("name", TREES)
def test_reads_every_split(name: str, tmp_path: Path) -> None:
    expected = fabricate(name, tmp_path)
    data = module(name, tmp_path)
    for split, pairs in expected.items():
        dataset = data.dataset(split)
        assert {image for image, _ in dataset.samples} == {image for image, _ in pairs}
        by_image = dict(pairs)
        for index, (image, mask) in enumerate(dataset.samples):
            pixels, label = dataset.read(index)
            names, void = by_image[image], np.iinfo(label.dtype).max
            assert pixels.shape == (24, 32, 3)
            assert (mask is None) == (names is None)
            wanted = np.full((24, 32), void) if names is None else ids_of(names, dataset.label_space.classes, void)
            assert np.array_equal(label, wanted)
    assert all(
        mask is None for _, mask in data.dataset("train" if "train" in expected else "val", labels=False).samples
    )


@pytest.mark.parametrize("name", TREES)
def test_a_wrong_tree_is_told_the_layout(name: str, tmp_path: Path) -> None:
    split = next(iter(fabricate(name, tmp_path)))
    mask = module(name, tmp_path).dataset(split).samples[0][1]
    assert mask is not None
    for path in tmp_path.rglob(mask.name):
        if "image" not in str(path.relative_to(tmp_path)).lower() and path.parent.name != "top":
            path.unlink()
    layout = r": .*\*.* in /.* and .*\*.* in /.*: expected one mask per image, got 1 image\(s\) without mask"
    with pytest.raises(ProtosegError, match=layout):
        module(name, tmp_path).dataset(split)
    with pytest.raises(ProtosegError, match=r"which does not exist. Read are .*\*.* in .*http.*data\.root=FOLDER"):
        module(name, tmp_path / "nowhere").dataset(split)


def test_fog_has_three_densities_beside_one_mask(tmp_path: Path) -> None:
    fabricate("foggy_cityscapes", tmp_path)
    both = module("foggy_cityscapes", tmp_path, "data.dataset.beta=[0.01,0.02]").dataset("train")
    assert [image.name[-8:-4] for image, _ in both.samples] == ["0.01", "0.01", "0.02", "0.02"]
    masks = [mask for _, mask in both.samples]
    assert masks[:2] == masks[2:]
    refined = "data.dataset.lists=foggy_trainval_refined_filenames.txt"
    for split, name in (("train", "u_1"), ("val", "b_0")):
        samples = module("foggy_cityscapes", tmp_path, refined).dataset(split).samples
        assert [image.name[:3] for image, _ in samples] == [name]
    with pytest.raises(
        ProtosegError, match=r"expected a beta out of 0.005, 0.01, 0.02, got 0.5: correct data.dataset.beta"
    ):
        module("foggy_cityscapes", tmp_path, "data.dataset.beta=0.5").dataset("train")


def test_scenes_of_loveda(tmp_path: Path) -> None:
    fabricate("loveda", tmp_path)
    pair = instantiate(composed("loveda_rural_to_urban", *(f"data.{p}.root={tmp_path}" for p in ("source", "target"))))
    pair.setup("fit")
    assert [image.parts[-3] for image, _ in pair.source.train_dataset().samples] == ["Rural"]
    assert [image.parts[-3] for image, _ in pair.target.train_dataset().samples] == ["Urban"]
    with pytest.raises(ProtosegError, match=r"loveda: expected scenes out of rural, urban, got city: .*null keeps all"):
        module("loveda", tmp_path, "data.dataset.scenes=[city]").dataset("train")


def test_voc_takes_the_masks_of_sbd_where_it_has_none(tmp_path: Path) -> None:
    fabricate("voc2012", tmp_path / "voc")
    (tmp_path / "voc/SegmentationClassAug/2008_000008.png").unlink()
    fabricate("sbd", tmp_path / "sbd")
    masks = f"data.dataset.masks=[SegmentationClass/*.png,{tmp_path}/sbd/cls/*.mat]"
    data = module("voc2012", tmp_path / "voc", masks).dataset("trainaug")
    assert [mask.name for _, mask in data.samples if mask] == ["2007_000032.png", "2008_000008.mat"]
    ids = scipy.io.loadmat(tmp_path / "sbd/cls/2008_000008.mat")["GTcls"][0]["Segmentation"][
        0
    ]  # as torchvision reads it
    assert np.array_equal(data.read(1)[1], ids)


def test_a_list_that_names_an_image_that_is_not_there(tmp_path: Path) -> None:
    fabricate("voc2012", tmp_path)
    (tmp_path / "JPEGImages/2008_000008.jpg").unlink()
    data = module("voc2012", tmp_path)
    with pytest.raises(ProtosegError, match=r"expected 2 images of .*trainaug.txt, got none of 2008_000008: add them"):
        data.dataset("trainaug")
    made, faults = listing_faults(lambda: data.dataset("trainaug"))
    assert made is not None
    assert (len(made), len(faults)) == (1, 1)
    (tmp_path / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(ProtosegError, match=r"val.txt: expected the list of a split's images"):
        data.dataset("val")


def test_packed_copies_have_the_lists(tmp_path: Path) -> None:
    fabricate("voc2012", tmp_path / "voc")
    pack(
        [module("voc2012", tmp_path / "voc").dataset(s) for s in ("train", "val")], tmp_path / "voc", tmp_path / "copy"
    )
    for split in ("train", "val"):
        copy, original = (module("voc2012", tmp_path / place).dataset(split) for place in ("copy", "voc"))
        assert all(np.array_equal(*labels) for labels in zip(copy.read(0), original.read(0), strict=True))


def test_relabelled_colours(tmp_path: Path) -> None:
    ((_, names),) = fabricate("potsdam", tmp_path)["train"]
    data = module("potsdam", tmp_path, "data.relabel={clutter:null,tree:low vegetation}").dataset("train")
    wanted = np.where(names == "tree", "low vegetation", names)
    assert np.array_equal(
        data.read(0)[1], ids_of(np.where(names == "clutter", None, wanted), data.label_space.classes, 255)
    )


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((24, 32, 3), 9, np.uint8), r"expected the colours of the classes, got 1 other\(s\).*\(9, 9, 9\)"),
        (np.zeros((24, 32), np.uint8), "expected the colours of the classes, got grey values: .*data.dataset.ids"),
    ],
)
def test_colours_that_are_none(pixels: np.ndarray, message: str, tmp_path: Path) -> None:
    fabricate("potsdam", tmp_path)
    data = module("potsdam", tmp_path).dataset("train")
    Image.fromarray(pixels).save(str(data.samples[0][1]))
    with pytest.raises(ProtosegError, match=f"mask .*2_10_label.tif: {message}"):
        data.read(0)


def test_masks_of_colours_where_ids_are_wanted(tmp_path: Path) -> None:
    fabricate("bdd100k", tmp_path)
    data = module("bdd100k", tmp_path).dataset("train")
    cv2.imwrite(str(data.samples[0][1]), np.zeros((24, 32, 3), np.uint8))
    with pytest.raises(ProtosegError, match=r"expected one channel of class ids .*, got RGB colours"):
        data.read(0)


@pytest.mark.parametrize("content", [b"no file of MATLAB", {"other": 1}, {"GTcls": {"Segmentation": np.zeros((2, 2))}}])
def test_bad_matlab_files(content: Any, tmp_path: Path) -> None:
    fabricate("sbd", tmp_path)
    data = module("sbd", tmp_path).dataset("train")
    mask = data.samples[0][1]
    assert mask is not None
    mask.write_bytes(content) if isinstance(content, bytes) else scipy.io.savemat(mask, content)
    with pytest.raises(
        ProtosegError, match=r"mask .*8.mat: expected a MATLAB file with whole numbers h w in GTcls.Segm"
    ):
        data.read(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": "nonsense"}, "classes: expected one of ade20k, .*voc2012, or a file FILE.yaml, got 'nonsense'"),
        ({"beta": 1}, "mine: expected settings out of none, got beta"),
        ({"split": "dev"}, "mine: expected a split out of train, val, got 'dev'"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    described = {"images": "*.png", "masks": "m/*.png", "classes": "camvid", "name": "mine"}
    with pytest.raises(ProtosegError, match=message):
        LayoutDataset(tmp_path, **{**described, **settings})


def test_a_strangers_data_set_is_one_yaml(tmp_path: Path) -> None:
    """Of ``docs/extending.md``: no class, the classes in a file of theirs, ids or colours as they say."""
    classes = {"classes": {"bog": [1, 2, 3], "rock": [4, 5, 6]}, "ids": {"bog": 7, "rock": [8, 9]}}
    OmegaConf.save(OmegaConf.create(classes), tmp_path / "classes.yaml")
    colors = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    for split in ("first", "second"):
        for folder, ids in (("north", [[7, 8], [9, 255]]), ("south", [[9, 9], [7, 7]])):
            for kind, pixels in (
                ("rgb", np.zeros((2, 2, 3))),
                ("id", ids),
                ("colour", colors[(np.array(ids) == 8) * 1]),
            ):
                path = tmp_path / split / folder / f"a_{kind}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.array(pixels, np.uint8)).save(path)
    described = {
        "images": "{split}/{site}/*_rgb.*",
        "classes": str(tmp_path / "classes.yaml"),
        "splits": {"train": "first", "val": "second"},
        "choices": {"site": ["north", "south"]},
    }
    data = LayoutDataset(tmp_path, masks="{split}/{site}/*_id.png", **described)
    assert data.label_space.classes == ("bog", "rock")
    assert [data.read(i)[1].tolist() for i in range(2)] == [[[0, 1], [1, 255]], [[1, 1], [0, 0]]]
    south = LayoutDataset(tmp_path, "val", masks="{split}/{site}/*_colour.png", ids="color", site="south", **described)
    assert [image.parent.name for image, _ in south.samples] == ["south"]
    assert south.read(0)[1].tolist() == [[0, 0], [0, 0]]
    assert LayoutDataset.space(**described) == data.label_space
    inside = LayoutDataset(tmp_path, masks="{split}/{site}/*_id.png", **{**described, "classes": classes})
    assert np.array_equal(inside.read(1)[1], data.read(1)[1])
    with pytest.raises(
        ProtosegError, match=r"data.dataset.classes: expected ids: .* for every class, got \{'bog': 1\}"
    ):
        LayoutDataset.space(classes={**classes, "ids": {"bog": 1}})
    with pytest.raises(ProtosegError, match="expected void ids or colours, got transparent, for data=folder alone"):
        LayoutDataset.space(classes={**classes, "void": ["transparent"]})


def test_a_subclass_of_a_public_data_set(cityscapes: Path) -> None:
    class Mine(Cityscapes):
        """Cityscapes of one city, with another setting of its layout."""

        def __init__(self, root: Path, split: str = "train") -> None:
            super().__init__(root, split, ["ulm"], masks="gtFine/{split}/**/*_gtFine_instanceIds.png", ids="train")

    (sample,) = Mine(cityscapes).samples
    assert [path.name for path in sample if path] == [
        "ulm_000000_000019_leftImg8bit.png",
        "ulm_000000_000019_gtFine_instanceIds.png",
    ]
    assert Mine.space() is CITYSCAPES
    assert "cityscapes-dataset.com" in str(Cityscapes.__doc__)


def test_patterns(tmp_path: Path) -> None:
    for name in ("a/x_rgb.png", "b/x_rgb.PNG", "b/x_other.png", "skip_me/y_rgb.png", "z_rgb.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [*matching(tmp_path, "**/*_rgb.png", "skip")] == ["a/x", "b/x"]
    assert [*matching(tmp_path, "*/*_rgb.png")] == ["ax", "bx", "skip_mey"]
    assert matching(tmp_path, "*_rgb.*") == {"z": tmp_path / "z_rgb.jpg"}
    assert [*matching(tmp_path / "b", "x_*.png")] == ["other", "rgb"]


def test_lists(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\ufefftrain/a/1.jpg mask/1.png\r\n\nval/2\n  train/3.x  \n", encoding="utf-8")
    assert read_names(tmp_path / "list.txt") == ["train/a/1", "val/2", "train/3.x"]
    assert read_names(tmp_path / "list.txt", "train") == ["train/a/1", "train/3.x"]


def test_gta5_leaves_the_copies_of_converters_alone(gta5: Path) -> None:
    cv2.imwrite(str(gta5 / "labels/00001_labelTrainIds.png"), np.zeros((24, 32), np.uint8))
    assert [mask.name for _, mask in GTA5(gta5).samples if mask] == ["00001.png", "00002.png"]


# Of names and colours in mmsegmentation 1.2.2, mmseg/datasets/*.py, made there by
# sha256("\n".join(f"{name} {red} {green} {blue}" for …)), with blanks for _; the labels of Vistas that are ignored (65;
# of 2.0 eight) left out. Pascal Context: names alone.
DIGESTS = {
    "isprs": "c9988285c5706dcd10fc2fa2318b8fbd616d1e3aae9802f9f898a00b07b59107",
    "loveda": "706bddfca2d0a3da8e05c69db0f4873dbaf4092082537cb2660af7640cb1ccd2",
    "vistas": "32b4026e727c462f5c58fe961ee3dae9c75f44c8c29418021f176f7b557d8b24",
    "vistas_v2": "b80152bccb567029ca0e74f9ae69f3914e59a7818eebccd337d5c6e5b46822ff",
    "voc2012": "bac11fe88ebb78e998974f30cc0e9e3dbbef58683772e77d278ebe214ec01454",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_tables_are_those_of_mmsegmentation(name: str) -> None:
    space = read_classes(name)
    lines = [f"{c} {r} {g} {b}" for c, (r, g, b) in zip(space.classes, space.colors, strict=True)]
    assert sha256("\n".join(lines).encode()).hexdigest() == DIGESTS[name]


def test_pascal_context_is_that_of_mmsegmentation() -> None:
    names = "\n".join(read_classes("pascal_context").classes)
    assert sha256(names.encode()).hexdigest() == "cd808465f06a16169edc25580073f0eda347e64f06cc1c2e24acd0b237f6497d"
    assert read_classes("pascal_context_60").classes == ("background", *read_classes("pascal_context").classes)


def test_voc_is_what_torchvision_says() -> None:
    names = FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    assert read_classes("voc2012").classes == ("background", *names[1:])
    assert read_ids("voc2012")[:22].tolist() == [*range(21), 254]


@pytest.mark.parametrize(("name", "classes", "things"), [
    ("idd", 26, 9), ("idd_level1", 7, 2), ("isprs", 6, 2), ("loveda", 7, 0), ("pascal_context", 59, 20),
    ("pascal_context_60", 60, 20), ("vistas", 65, 37), ("vistas_v2", 116, 70), ("voc2012", 21, 20),
])  # fmt: skip
def test_numbers_of_classes(name: str, classes: int, things: int) -> None:
    space = read_classes(name)
    assert (len(set(space.classes)), space.num_classes, len(space.things)) == (classes, classes, things)
    table = read_ids(name)
    assert sorted(set(table[table < classes].tolist())) == list(range(classes))


def test_columns_of_one_table_agree() -> None:
    # Each of IDD's 40 labels has a class on both levels, and the classes of level 3 are parts of those of level 1.
    fine, coarse = read_ids("idd", "full"), read_ids("idd_level1", "full")
    assert (fine[:35] < 26).all()
    assert (fine[35:40] == 255).all()
    assert (coarse[35:40] == 255).all()
    assert len({(int(f), int(c)) for f, c in zip(fine[:35], coarse[:35], strict=True)}) == 26
    # The numbers of Pascal Context's 459 labels are alphabetical, as its 59 are.
    numbers = [int(number or -1) for number in column("pascal_context", "mat").values()]
    assert numbers == sorted(numbers)
    assert read_ids("pascal_context", "mat")[[0, 1, 459]].tolist() == [255, 255, 255]
    assert read_ids("pascal_context_60", "mat")[[0, 2, 459]].tolist() == [0, 1, 0]
    assert read_colors("isprs")[0, 0, 0] == 255
    assert read_colors("camvid") == {color: i for i, color in enumerate(CAMVID.colors)}


def test_unknown_column_of_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InstantiationException, match="ids: expected a column of 'idd'"):
        module("idd", tmp_path, "data.dataset.ids=level9")
