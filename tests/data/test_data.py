"""DATA specs: real Fashion-MNIST, and archives made here, good and bad."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from purifier.data import named
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.errors import DataError, SpecError

SYSTEM = named.SYSTEM_FASHION_MNIST
RAMP = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 4, 6)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to look in, with every other folder empty and downloads blocked."""
    monkeypatch.setattr(named, "SYSTEM_FASHION_MNIST", tmp_path / "none")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PURIFIER_DATA", raising=False)
    for scheme in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    for scheme in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(scheme, raising=False)
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes((0, 0, 8, array.ndim)) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = head + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder: Path, *, suffix: str = "", images: np.ndarray = RAMP, labels: object = (3, 9)) -> None:
    write_idx(folder / f"t10k-images-idx3-ubyte{suffix}", images)
    write_idx(folder / f"t10k-labels-idx1-ubyte{suffix}", np.array(labels, dtype=np.uint8))


def test_fashion_mnist_is_the_real_set() -> None:
    data = load_data("fashion-mnist")
    assert (len(data), data.shape, data.name) == (10_000, (1, 28, 28), "fashion-mnist")
    assert torch.bincount(data.labels).tolist() == [1000] * 10
    assert [data.classes[label] for label in data.labels[:3]] == ["Ankle boot", "Pullover", "Trouser"]
    pixels, labels = data.batch([1, 9999, 1])
    assert (pixels.dtype, tuple(pixels.shape), labels.dtype) == (torch.float32, (3, 1, 28, 28), torch.int64)
    assert pixels.min() == 0 and pixels.max() == 1
    assert torch.equal(pixels[0], pixels[2]) and not torch.equal(pixels[0], pixels[1])


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_debians_files_are_found_and_read_byte_for_byte(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "SYSTEM_FASHION_MNIST", SYSTEM)  # and every other place is empty
    pixels, _ = load_data("fashion-mnist").batch([1])
    raw = gzip.decompress((SYSTEM / "t10k-images-idx3-ubyte.gz").read_bytes())[16 + 784 : 16 + 2 * 784]
    assert (pixels.flatten() * 255).round().to(torch.uint8).tolist() == list(raw)


def test_split_and_count() -> None:
    first = load_data("fashion-mnist:train:12")
    assert len(first) == 12
    assert first.labels.tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9]
    assert torch.equal(
        load_data("fashion-mnist:20").batch(range(20))[0], load_data("fashion-mnist:test").batch(range(20))[0]
    )


@pytest.mark.parametrize("count", ["0", "-3"])
def test_count_below_one(count: str) -> None:
    with pytest.raises(SpecError, match=f"expected a count of at least 1, got {count}"):
        load_data(f"fashion-mnist:test:{count}")


@pytest.mark.parametrize(
    ("spec", "whole", "places"),
    [
        ("fashion-mnist:train:59998-60000", "fashion-mnist:train", [59998, 59999]),
        ("fashion-mnist:9-11", "fashion-mnist:test", [9, 10]),
        ("demo:299-300", "demo", [299]),
        ("demo:0-3", "demo", [0, 1, 2]),
    ],
)
def test_ranges_work_as_in_python(spec: str, whole: str, places: list[int]) -> None:
    part, everything = load_data(spec), load_data(whole)
    assert (part.name, len(part), part.classes) == (spec, len(places), everything.classes)
    for got, expected in zip(part.batch(range(len(places))), everything.batch(places), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("demo:5-3", "expected start-stop with 0 <= start < stop, such as 0-100, got 5-3"),
        ("fashion-mnist:test:7-7", "0 <= start < stop, such as 0-100, got 7-7; the first image is 0"),
        ("demo:-2-3", "0 <= start < stop, such as 0-100, got -2-3"),
        ("demo:-3--1", "got -3--1"),
        ("demo:299-301", "asked for images 299-301, but there are only 300"),
        ("demo:0-301", "asked for 301 images, but there are only 300"),
        ("fashion-mnist:10000-10001", "asked for images 10000-10001, but there are only 10000"),
        ("demo:3-", "cannot read DATA 'demo:3-'"),
        ("demo:1-2-3", "cannot read DATA"),
        ("demo:a-b", "demo[:count|:start-stop]"),
        (f"demo:0-{5000 * '9'}", "cannot read DATA"),
    ],
)
def test_bad_ranges_are_errors(spec: str, says: str) -> None:
    with pytest.raises(SpecError, match=re.escape(says)) as caught:
        load_data(spec)
    assert caught.value.spec == spec


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_in_root(alone: Path, place: str, suffix: str) -> None:
    write_fashion(alone / place, suffix=suffix)
    data = load_data("fashion-mnist:test", root=alone)
    pixels, labels = data.batch([0, 1])
    assert torch.equal(pixels[:, 0], torch.from_numpy(RAMP.copy()).float() / 255)
    assert labels.tolist() == [3, 9]


def test_root_overrides_the_environment(alone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PURIFIER_DATA", str(tmp_path / "environment"))
    write_fashion(tmp_path / "environment", labels=(1, 1))
    assert load_data("fashion-mnist", root=alone).labels.tolist() == [1, 1]
    write_fashion(alone, labels=(2, 2))
    assert load_data("fashion-mnist", root=alone).labels.tolist() == [2, 2]
    with pytest.raises(SpecError, match="asked for 3 images, but there are only 2"):
        load_data("fashion-mnist:test:3", root=alone)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_truncated_idx(alone: Path, suffix: str) -> None:
    write_fashion(alone, suffix=suffix)
    path = alone / f"t10k-images-idx3-ubyte{suffix}"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.*install it again") as caught:
        load_data("fashion-mnist", root=alone)
    assert caught.value.path == path
    write_fashion(alone, suffix=".gz")
    gz = path.with_name("t10k-images-idx3-ubyte.gz")
    gz.write_bytes(gz.read_bytes() + gzip.compress(bytes(2**22)) * 20)
    path.with_name("t10k-images-idx3-ubyte").unlink(missing_ok=True)
    with pytest.raises(DataError, match="holds more than 67,108,864 bytes"):
        load_data("fashion-mnist", root=alone)


def test_damaged_idx(alone: Path) -> None:
    write_fashion(alone)
    path = alone / "t10k-images-idx3-ubyte"
    path.write_bytes(b"\x00\x00\x0d\x03" + path.read_bytes()[4:])
    with pytest.raises(DataError, match="is not an idx file of bytes in 3 dimensions"):
        load_data("fashion-mnist", root=alone)
    write_fashion(alone, labels=(1, 2, 3))
    with pytest.raises(DataError, match="expected a label for each of 2 images, got 3"):
        load_data("fashion-mnist:test:2", root=alone)
    write_fashion(alone, labels=(1, 10))
    with pytest.raises(DataError, match="expected labels from 0 to 9, got 1 to 10"):
        load_data("fashion-mnist", root=alone)


def test_failed_download_says_what_to_do(alone: Path) -> None:
    with pytest.raises(DataError, match=r"mnist is not in .*root and cannot be downloaded.*--root") as caught:
        load_data("mnist", root=alone)
    assert "apt-get" not in str(caught.value)
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        load_data("fashion-mnist:train")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fashion_mnist", "no data set 'fashion_mnist'; did you mean 'fashion-mnist'"),
        ("MNIST:test", "did you mean 'mnist'"),
        ("imagenet", "DATA is one of: NAME"),
        ("", "no data set ''"),
        ("mnist:validation", "cannot read DATA 'mnist:validation'"),
        ("mnist:test:5:6", "cannot read DATA"),
        ("demo:test", "cannot read DATA"),
        ("folder:", "no path in DATA 'folder:'"),
    ],
)
def test_unreadable_specs_are_errors(spec: str, says: str) -> None:
    with pytest.raises(SpecError, match=re.escape(says)) as caught:
        load_data(spec)
    assert caught.value.spec == spec


def test_a_bare_path_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is a path: write folder:"):
        load_data(str(tmp_path))
    with pytest.raises(SpecError, match=r"write npz:images\.npz"):
        load_data("images.npz")


@pytest.mark.parametrize("spec", ["npz:{}", "folder:{}", "fashion-mnist"])
def test_a_path_too_long(tmp_path: Path, spec: str) -> None:
    path = tmp_path / (300 * "x")
    with pytest.raises(DataError, match="cannot read .*too long"):
        load_data(spec.format(path), root=path)


def test_image_data_from_tensors() -> None:
    data = ImageData("mine", torch.rand(3, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 1]), ("a", "b"))
    assert (len(data), data.shape, data.batch([2])[0].dtype) == (3, (3, 2, 2), torch.float32)
    with pytest.raises(DataError, match=r"expected images \(N, 1 or 3, H, W\), got \(3, 2, 2\)"):
        ImageData("mine", torch.rand(3, 2, 2), torch.tensor([0, 1, 1]))
    with pytest.raises(DataError, match=r"got torch\.int32"):
        ImageData("mine", torch.zeros(1, 1, 2, 2, dtype=torch.int32), torch.tensor([0]))
