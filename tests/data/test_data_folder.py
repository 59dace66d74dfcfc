"""Folders of images as specs: files of one size and of many, broken ones, parts of a folder."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from purifier.data import named
from purifier.data.files import ImageFiles
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.errors import ConfigError, DataError, SpecError

SYSTEM = named.SYSTEM_FASHION_MNIST
RAMP = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 4, 6)


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder with one class that may not be read, for a user who is not root."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        save_image(folder / "a" / "x.png", 0)
        save_image(folder / "b" / "deep" / "x.png", 0)
        (folder / "b" / "deep").chmod(0)
        if user == 0:
            os.seteuid(65534)
        yield folder
        os.seteuid(user)
        (folder / "b" / "deep").chmod(0o755)


def test_folder_without_permission(locked: Path) -> None:
    for spec in (f"folder:{locked}", f"folder:{locked / 'b'}", f"npz:{locked / 'b' / 'deep' / 'x.png'}"):
        with pytest.raises(DataError, match=r"cannot read .*deep.*: Permission denied; give data that you can read"):
            load_data(spec)


def save_image(path: Path, value: object, *, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


def test_folder(tmp_path: Path) -> None:
    save_image(tmp_path / "zebra" / "a.png", (255, 0, 51))
    save_image(tmp_path / "ant" / "deep" / "b.png", 102, mode="L")
    save_image(tmp_path / "ant" / "a.png", (0, 0, 255, 255), mode="RGBA")
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    data = load_data(f"folder:{tmp_path}")
    assert (data.classes, data.shape, data.labels.tolist()) == (("ant", "zebra"), (3, 4, 6), [0, 0, 1])
    pixels, labels = data.batch([2, 1, 0])
    assert labels.tolist() == [1, 0, 0]
    torch.testing.assert_close(pixels[:, :, 3, 5], torch.tensor([[1, 0, 0.2], [0.4, 0.4, 0.4], [0, 0, 1]]))


def test_folder_of_grey_images_has_one_channel(tmp_path: Path) -> None:
    save_image(tmp_path / "only" / "a.png", 51, mode="L")
    pixels, _ = load_data(f"folder:{tmp_path}").batch([0])
    assert tuple(pixels.shape) == (1, 1, 4, 6)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 0.2))


def test_folder_of_different_sizes_names_two_files(tmp_path: Path) -> None:
    first = save_image(tmp_path / "a" / "1.png", 0, mode="L")
    other = save_image(tmp_path / "b" / "2.png", 0, mode="L", size=(5, 4))
    with pytest.raises(DataError, match=f"{first} of 6x4 and {other} of 5x4.*; give resize= and crop=.*--resize 256"):
        load_data(f"folder:{tmp_path}")
    with pytest.raises(DataError, match=f"{first} of 12x8 and {other} of 10x8.* after resizing; also give crop="):
        load_data(f"folder:{tmp_path}", resize=8)
    assert load_data(f"folder:{tmp_path}", resize=8, crop=8).shape == (1, 8, 8)
    assert load_data(f"folder:{tmp_path}", resize="5x7").shape == (1, 5, 7)
    with pytest.raises(DataError, match=r"at least 5x5 to crop, got .*1\.png of 6x4 .*enlarge them with resize="):
        load_data(f"folder:{tmp_path}", crop=5)


def test_bad_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        load_data(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(DataError, match="holds no images"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "a" / "x.png").write_bytes(b"not a png")
    with pytest.raises(DataError, match=r"cannot read image .*x\.png"):
        load_data(f"folder:{tmp_path}")
    save_image(tmp_path / "a" / "x.tif", 0.5, mode="F")
    (tmp_path / "a" / "x.png").unlink()
    with pytest.raises(DataError, match=r"expected an image of 8 or 16 bits, got .*x\.tif of mode F; convert it"):
        load_data(f"folder:{tmp_path}")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photos of two classes, two of them cut off in the middle."""
    noise = np.random.default_rng(0)
    for place in range(6):
        path = tmp_path / "photos" / "ab"[place % 2] / f"{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    for name in ("a/2.jpg", "b/5.jpg"):
        truncate(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_every_broken_image_is_named_before_any_is_used(photos: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 6 images cannot be read: .*a/2\.jpg.*b/5\.jpg.*--skip-bad"):
        load_data(f"folder:{photos}")
    truncate(photos / "a" / "0.jpg")
    with pytest.raises(DataError, match="3 of 6 images cannot be read"):
        load_data(f"folder:{photos}")


def test_broken_images_can_be_left_out_and_are_listed(photos: Path) -> None:
    whole = [path for path in sorted(photos.rglob("*.jpg")) if path.name not in ("2.jpg", "5.jpg")]
    data = load_data(f"folder:{photos}", skip_bad=True)
    assert [path.name for path in data.skipped] == ["2.jpg", "5.jpg"]
    assert (len(data), data.labels.tolist()) == (4, [0, 0, 1, 1])
    expected = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).float() / 255 for path in whole]
    assert torch.equal(data.batch(range(4))[0], torch.stack(expected))


def test_leaving_out_every_image_is_an_error(photos: Path) -> None:
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="6 of 6 images cannot be read"):
        load_data(f"folder:{photos}", skip_bad=True)


def test_a_file_that_changes_after_it_was_read_is_an_error(tmp_path: Path) -> None:
    path = save_image(tmp_path / "x.png", 0, mode="L")
    files = ImageFiles([path], cache_bytes=0)
    save_image(path, 0, mode="L", size=(9, 9))
    with pytest.raises(DataError, match=r"x\.png has changed since it was first read"):
        files[torch.tensor([0])]
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read image .*x\.png"):
        files[torch.tensor([0])]


def test_parts_of_a_folder_have_all_classes(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 1), ("c", 3)):
        for place in range(count):
            save_image(tmp_path / name / f"{place}.png", 10 * place, mode="L")
    whole, part = load_data(f"folder:{tmp_path}"), load_data(f"folder:{tmp_path}:4")
    assert (whole.labels.tolist(), part.labels.tolist()) == ([0, 0, 0, 1, 2, 2, 2], [0, 1, 2, 0])
    assert [round(255 * float(image.mean())) for image in part.batch(range(4))[0]] == [0, 0, 0, 10]
    rest = load_data(f"folder:{tmp_path}:4-7")
    assert (rest.labels.tolist(), rest.classes, rest.name) == ([2, 0, 2], ("a", "b", "c"), f"folder:{tmp_path}:4-7")
    for which, says in (("8", "asked for 8 images, but there are only 7"), ("0", "at least 1"), ("3-2", "got 3-2")):
        with pytest.raises(SpecError, match=says):
            load_data(f"folder:{tmp_path}:{which}")


def test_a_folder_that_is_called_like_a_part(tmp_path: Path) -> None:
    for place in range(2):
        save_image(tmp_path / "photos:1" / "a" / f"{place}.png", 0)
    assert len(load_data(f"folder:{tmp_path / 'photos:1'}")) == 2
    assert len(load_data(f"folder:{tmp_path / 'photos:1'}:1")) == 1


def test_images_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    for place in range(3):
        save_image(tmp_path / f"{place}.png", 10 * place, mode="L")
    data = load_data(f"folder:{tmp_path}:1-3")
    assert (data.labelled, data.labels.tolist(), data.classes) == (False, [-1, -1], ())
    assert [round(255 * float(image.mean())) for image in data.batch([0, 1])[0]] == [10, 20]
    assert load_data("demo:1").labelled


@pytest.mark.parametrize("argument", ["resize", "crop", "classes", "skip_bad"])
def test_arguments_for_folders_only(argument: str) -> None:
    with pytest.raises(ConfigError, match=f"{argument} .* is for folder:DIR, but the data is 'demo:3'; leave"):
        load_data("demo:3", **{argument: 1})


def test_the_next_batch_is_decoded_while_the_caller_works(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(f"folder:{photos}", skip_bad=True)
    parts = [[3], [0, 2], [1]]
    expected = [data.batch(part) for part in parts]
    asked, read = threading.Event(), ImageFiles.__getitem__

    def reading(files: ImageFiles, positions: torch.Tensor) -> torch.Tensor:
        if positions.tolist() == [0, 2]:
            asked.set()
        return read(files, positions)

    monkeypatch.setattr(ImageFiles, "__getitem__", reading)
    served = data.batches(parts)
    found = [next(served)]
    assert asked.wait(timeout=30)
    found += served
    for got, wanted in zip(found, expected, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    assert list(data.batches([])) == []


def test_a_file_that_breaks_between_batches_ends_them(photos: Path) -> None:
    files = ImageFiles(sorted(photos.rglob("*.jpg")), skip_bad=True, cache_bytes=0)
    data = ImageData("photos", files, None)
    served = data.batches([[0], [1], [2]])
    next(served)
    for path in photos.rglob("*.jpg"):
        truncate(path)
    with pytest.raises(DataError, match="cannot read image"):
        list(served)
