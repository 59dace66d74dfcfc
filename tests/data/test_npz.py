"""Images and labels from .npz files."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from purifier.data.loading import load_data
from purifier.errors import DataError

RAMP = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 4, 6)


def npz(tmp_path: Path, **arrays: object) -> str:
    np.savez_compressed(tmp_path / "set.npz", **arrays)
    return f"npz:{tmp_path / 'set.npz'}"


@pytest.mark.parametrize("layout", ["NHW", "NCHW", "NHWC"])
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
def test_npz_layouts(tmp_path: Path, layout: str, kind: str) -> None:
    images = RAMP if kind == "uint8" else (RAMP / 255).astype(kind)
    shaped = {"NHW": images, "NCHW": images[:, None], "NHWC": images[..., None]}[layout]
    data = load_data(npz(tmp_path, images=shaped, labels=np.array([7, 0])))
    assert data.shape == (1, 4, 6)
    pixels, labels = data.batch([1])
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[0, 0], torch.from_numpy(RAMP[1].copy()).float() / 255)
    assert labels.tolist() == [0]


def test_npz_colours_keep_their_place(tmp_path: Path) -> None:
    images = np.zeros((1, 5, 7, 3), dtype=np.uint8)
    images[0, 4, 2] = (10, 20, 30)
    pixels, _ = load_data(npz(tmp_path, images=images, labels=np.array([0]))).batch([0])
    assert (pixels[0, :, 4, 2] * 255).round().tolist() == [10, 20, 30]
    assert int((pixels > 0).sum()) == 3


IMAGES = np.full((2, 1, 4, 4), 0.5, dtype=np.float32)


LABELS = np.array([0, 1])


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": IMAGES, "y": LABELS}, "has no array 'labels', but 'images', 'y'"),
        ({"labels": LABELS}, "has no array 'images'"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "expected at least one image, got (0, 1, 4, 4)"),
        ({"images": IMAGES * np.nan, "labels": LABELS}, "expected float images in [0, 1], got [nan, nan]"),
        ({"images": IMAGES * 4, "labels": LABELS}, "expected float images in [0, 1], got [2, 2]"),
        ({"images": IMAGES - 1, "labels": LABELS}, "got [-0.5, -0.5]"),
        ({"images": np.full((2, 4, 4), 1e300), "labels": LABELS}, "expected float images in [0, 1], got [inf, inf]"),
        ({"images": IMAGES.astype(np.int64), "labels": LABELS}, "got int64"),
        ({"images": IMAGES, "labels": np.array([0, 1, 1])}, "a label for each of 2 images, got 3"),
        ({"images": IMAGES, "labels": np.array([0, -1])}, "expected labels of 0 or more, got -1 to 0"),
        ({"images": IMAGES, "labels": np.array([0.0, 1.0])}, "expected labels (N,) of integers, got float64"),
        ({"images": IMAGES, "labels": np.array(1)}, "expected labels (N,) of integers, got ()"),
        ({"images": np.array(0.5), "labels": LABELS}, "expected images (N, H, W)"),
        ({"images": np.zeros((2, 4, 4, 4)), "labels": LABELS}, "with 1 or 3 channels, got (2, 4, 4, 4)"),
        ({"images": np.zeros((2, 3, 4, 3)), "labels": LABELS}, "cannot tell which side is the channels"),
        ({"images": np.array([IMAGES, None], dtype=object), "labels": LABELS}, "allow_pickle=False"),
    ],
)
def test_bad_npz_files_are_errors(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    spec = npz(tmp_path, **arrays)
    with pytest.raises(DataError, match=re.escape(says)):
        load_data(spec)


def test_npz_damaged_or_foreign(tmp_path: Path) -> None:
    spec = npz(tmp_path, images=IMAGES, labels=LABELS)
    path = tmp_path / "set.npz"
    whole = path.read_bytes()
    np.save(tmp_path / "single.npy", IMAGES)
    for content in (whole[:-30], b"", b"text", pickle.dumps([1]), (tmp_path / "single.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read .*set\.npz"):
            load_data(spec)
    with pytest.raises(DataError, match="no file"):
        load_data("npz:absent.npz")


@pytest.mark.parametrize(
    ("old", "new"), [(b"(2, 1", b"((, 1"), (b"'descr'", b"'de\ncr'"), (b"NUMPY", b"numpy"), (b"<f4", b"<q4")]
)
def test_npz_with_a_damaged_header(tmp_path: Path, old: bytes, new: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        for name, array in (("images", IMAGES), ("labels", LABELS)):
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(f"{name}.npy", content.getvalue().replace(old, new))
    with pytest.raises(DataError, match=r"cannot read .*set\.npz"):
        load_data(f"npz:{tmp_path / 'set.npz'}")
