"""npz files from strangers: sizes are read from headers, and nothing large is decompressed."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from purifier.data import archives
from purifier.data.archives import MOST_BYTES
from purifier.data.loading import load_data
from purifier.errors import ConfigError, DataError

LABELS = np.zeros(2, dtype=np.int64)


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def header(shape: tuple[int, ...], version: tuple[int, int] = (1, 0)) -> bytes:
    content = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0
    write(content, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return content.getvalue()


def write_bomb(path: Path, count: int, version: tuple[int, int] = (1, 0)) -> int:
    """An .npz of ``count`` black images of 28x28; return its size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            member.write(header((count, 28, 28), version))
            for _ in range(count // 1000):
                member.write(bytes(784_000))
        archive.writestr("labels.npy", npy(np.zeros(count, dtype=np.int64)))
    return path.stat().st_size


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, version: tuple[int, int]) -> None:
    path = tmp_path / "bomb.npz"
    size = write_bomb(path, 700_000, version)
    assert size < 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"hold 554,\d{3},\d{3} bytes once decompressed.*--max-bytes 554"):
            load_data(f"npz:{path}")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_can_be_raised_and_lowered_by_name(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    write_bomb(path, 1000)
    held = 784_000 + len(header((1000, 28, 28))) + len(npy(np.zeros(1000, dtype=np.int64)))
    with pytest.raises(DataError, match=f"with max_bytes={held}"):
        load_data(f"npz:{path}", max_bytes=held - 1)
    assert len(load_data(f"npz:{path}", max_bytes=held)) == 1000
    for wrong in (0, -1, 2.5, True, "1GB"):
        with pytest.raises(ConfigError, match="max_bytes: expected a number of bytes of at least 1"):
            load_data(f"npz:{path}", max_bytes=wrong)
    with pytest.raises(ConfigError, match="--max-bytes. is for npz:FILE"):
        load_data("demo:1", max_bytes=5)


def test_arrays_that_are_not_compressed_may_be_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 100)
    images = np.zeros((2, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "plain.npz", images=images, labels=LABELS)
    assert len(load_data(f"npz:{tmp_path / 'plain.npz'}")) == 2
    np.savez_compressed(tmp_path / "small.npz", images=images, labels=LABELS)
    with pytest.raises(DataError, match="expected at most 100"):
        load_data(f"npz:{tmp_path / 'small.npz'}")


def test_a_header_that_lies_is_believed_for_the_limit(tmp_path: Path) -> None:
    """numpy would make room for what the header says, however little follows."""
    with zipfile.ZipFile(tmp_path / "liar.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header((10**6, 1000, 1000)) + bytes(100))
        archive.writestr("labels.npy", npy(LABELS))
    with pytest.raises(DataError, match="hold 1,000,000,000,"):
        load_data(f"npz:{tmp_path / 'liar.npz'}")


def test_an_endless_header_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "long.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        claimed = (2**28).to_bytes(4, "little")
        archive.writestr("images.npy", b"\x93NUMPY\x02\x00" + claimed + b" " * 2**28)
        archive.writestr("labels.npy", npy(LABELS))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"cannot read .*long\.npz"):
            load_data(f"npz:{tmp_path / 'long.npz'}")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_pickled_objects_are_refused_whatever_the_limit(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.array([None, {}], dtype=object), labels=LABELS)
    with pytest.raises(DataError, match="allow_pickle=False"):
        load_data(f"npz:{tmp_path / 'set.npz'}", max_bytes=MOST_BYTES**2)


def test_parts_of_an_npz_are_in_its_order(tmp_path: Path) -> None:
    images = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(5))
    part = load_data(f"npz:{tmp_path / 'set.npz'}:1-3")
    assert part.labels.tolist() == [1, 2]
    assert torch.equal(part.batch([0])[0][0, 0], torch.tensor([[4, 5], [6, 7]]) / 255)
    assert load_data(f"npz:{tmp_path / 'set.npz'}:2").labels.tolist() == [0, 1]
    np.savez(tmp_path / "bare.npz", images=images)
    bare = load_data(f"npz:{tmp_path / 'bare.npz'}:2")
    assert (len(bare), bare.labelled) == (2, False)
