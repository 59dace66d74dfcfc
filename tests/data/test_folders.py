"""What is found in folders: classes and their order, what systems leave behind, splits, class files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from purifier.data.folders import find_images, read_classes
from purifier.data.loading import load_data
from purifier.errors import ConfigError, DataError


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    "left_behind",
    [
        "a/._x.png",
        "a/Thumbs.db",
        ".DS_Store",
        "a/.DS_Store",
        "__MACOSX/a/x.png",
        ".cache/x.png",
        "a/@eaDir/x.png",
        "desktop.ini",
        "._a.png",
    ],
)
def test_what_systems_leave_behind_is_passed_over(tmp_path: Path, left_behind: str) -> None:
    images(tmp_path, "a/x.png", "b/x.png")
    (tmp_path / left_behind).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left_behind).write_bytes(b"\x00\x05\x16\x07 no image")
    data = load_data(f"folder:{tmp_path}")
    assert (data.classes, data.labels.tolist()) == (("a", "b"), [0, 1])


def test_an_empty_class_keeps_its_place(tmp_path: Path) -> None:
    images(tmp_path, "a/x.png", "c/x.png")
    (tmp_path / "b").mkdir()
    data = load_data(f"folder:{tmp_path}")
    assert (data.classes, data.labels.tolist()) == (("a", "b", "c"), [0, 2])


@pytest.mark.parametrize(
    ("folders", "advised"),
    [
        (("train", "val"), "val"),
        (("Train", "Test"), "Train"),
        (("train",), "train"),
        (("images", "test", "train"), "train"),
    ],
)
def test_splits_are_no_classes(tmp_path: Path, folders: tuple[str, ...], advised: str) -> None:
    images(tmp_path, *(f"{folder}/dog/x.png" for folder in folders))
    with pytest.raises(DataError, match=f"parts of a data set, not classes; .*folder:{tmp_path / advised}"):
        load_data(f"folder:{tmp_path}")
    assert load_data(f"folder:{tmp_path / advised}").classes == ("dog",)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    images(tmp_path, "bus/x.png", "train/x.png")
    assert load_data(f"folder:{tmp_path}").classes == ("bus", "train")
    images(tmp_path, "test/x.png")
    assert load_data(f"folder:{tmp_path}", classes=["bus", "train", "test"]).labels.tolist() == [0, 2, 1]


def test_images_beside_class_folders_are_an_error(tmp_path: Path) -> None:
    images(tmp_path, "a/x.png", "overview.png")
    with pytest.raises(DataError, match=r"holds images \(overview\.png\) beside folders of images \(a\)"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("line", ["{}", "  {}  ", "{} tench, Tinca tinca"])
def test_a_class_file_maps_folders_to_the_classifiers_classes(tmp_path: Path, line: str) -> None:
    images(tmp_path / "photos", "n01443537/x.png", "n01440764/x.png")
    ids = ["n01484850", "n01443537", "n01491361", "n01440764"]
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(line.format(name) for name in ids) + "\n\n")
    data = load_data(f"folder:{tmp_path / 'photos'}", classes=names)
    assert (data.labels.tolist(), len(data.classes)) == ([3, 1], 4)
    found = find_images(tmp_path / "photos", ids)
    assert found.labels == [3, 1]


def test_a_class_file_has_every_folder_once(tmp_path: Path) -> None:
    images(tmp_path, "goldfish/x.png", "crane/x.png")
    (tmp_path / "not in the list").mkdir()  # and without images
    with pytest.raises(DataError, match=r"'crane' is no line of the 2 in classes, such as 'tench'"):
        load_data(f"folder:{tmp_path}", classes=["tench", "goldfish"])
    with pytest.raises(DataError, match=r"'goldfish' is no line .*did you mean 'gold fish'"):
        load_data(f"folder:{tmp_path}", classes=["crane", "gold fish"])
    with pytest.raises(DataError, match=r"'crane' is in lines 0 and 2 of"):
        load_data(f"folder:{tmp_path}", classes=["crane", "goldfish", "crane"])


def test_class_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read classes .*absent\.txt: No such file"):
        read_classes(tmp_path / "absent.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="is empty; expected line K from 0"):
        read_classes(tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="cannot read classes"):
        read_classes(tmp_path / "binary.txt")
    for wrong in ([], [1], {"a": 0}, 5):
        with pytest.raises(ConfigError, match="classes: expected a file, or a list of names"):
            read_classes(wrong)
    images(tmp_path, "x.png")
    with pytest.raises(DataError, match="holds images without class folders; leave classes out"):
        load_data(f"folder:{tmp_path}", classes=["a"])
