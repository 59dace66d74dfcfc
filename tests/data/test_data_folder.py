"""Folders of images: one class a folder, files read batch by batch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from purifier.data import named
from purifier.data.loading import load_data
from purifier.errors import DataError

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
    save_image(tmp_path / "ant" / "a.png", (0, 0, 255, 9), mode="RGBA")
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
    with pytest.raises(DataError, match=f"{first} of 6x4 and {other} of 5x4"):
        load_data(f"folder:{tmp_path}")


def test_bad_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        load_data(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(DataError, match="holds no folders"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "a" / "x.png").write_bytes(b"not a png")
    with pytest.raises(DataError, match=r"cannot read image .*x\.png"):
        load_data(f"folder:{tmp_path}")
    save_image(tmp_path / "a" / "x.png", 40_000, mode="I;16")
    with pytest.raises(DataError, match="expected 8-bit images"):
        load_data(f"folder:{tmp_path}")


def test_folder_image_truncated_after_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    data = load_data(f"folder:{tmp_path}")
    with pytest.raises(DataError, match=r"cannot read image .*x\.png.*fix or remove it"):
        data.batch([0])
