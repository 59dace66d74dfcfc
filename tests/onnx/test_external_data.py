from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

import purifier
from onnx_models import linear
from purifier.errors import ClassifierError
from purifier.onnx import external_data
from purifier.onnx.reader import load_onnx
from purifier.onnx.runtime import CPU


def saved(folder: Path, location: str = "weights.bin", **entries: str) -> Path:
    """The linear classifier with its weights in another file; ``entries`` replace what the model says about it."""
    path = folder / "classifier.onnx"
    onnx.save(linear(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = {"location": location, **entries}.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    whole, read = linear(), load_onnx(saved(tmp_path))
    np.testing.assert_array_equal(
        numpy_helper.to_array(read.graph.initializer[0]), numpy_helper.to_array(whole.graph.initializer[0])
    )
    assert read.graph.initializer[0].data_location == TensorProto.DEFAULT
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    found, expected = (
        purifier.guard(model, "blur", providers=[CPU]).run(None, {"images": images})[0]
        for model in (saved(tmp_path), whole)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_several_tensors_of_one_file_are_told_apart(tmp_path: Path) -> None:
    model, numbers = linear(), np.arange(6, dtype=np.int64)
    model.graph.initializer.append(numpy_helper.from_array(numbers, "more"))
    path = tmp_path / "classifier.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert numpy_helper.to_array(load_onnx(path).graph.initializer[1]).tolist() == numbers.tolist()


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "..\\secret.bin", ""])
def test_weights_outside_the_folder_are_never_read(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    with pytest.raises(ClassifierError, match=r"keeps 'weight' in .*: expected a file in the same folder; or save"):
        load_onnx(saved(folder, location))


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = saved(folder)
    (folder / "weights.bin").rename(tmp_path / "elsewhere.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(ClassifierError, match=r"symbolic link to another folder; put the file itself beside the model"):
        load_onnx(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "nowhere.bin"}, "there is no such file; copy both files"),
        ({"location": "a" * 5000}, "cannot be read|no such file"),
        ({"offset": "1000"}, "whose file has 3840 bytes, expected 4840 or more"),
        ({"offset": "-1"}, "got 3840"),
        ({"length": "10"}, r"expected 3840 bytes for its shape \(192, 5\), got 10"),
        ({"offset": "many"}, "place is damaged"),
    ],
)
def test_damaged_places_are_errors(entries: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=message):
        load_onnx(saved(tmp_path, **entries))


def test_the_data_counts_towards_the_limit_even_if_tensors_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for number in range(9):
        model.graph.initializer.append(model.graph.initializer[0])
        model.graph.initializer[-1].name = f"again{number}"
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr(external_data, "MAX_BYTES", 30_000)  # the file is 4 kB and is asked for ten times
    with pytest.raises(ClassifierError, match=r"and its external data are .* GB, the limit is"):
        load_onnx(path)


def test_a_model_without_a_path_says_to_give_one() -> None:
    model: ModelProto = linear()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "weights.bin")
    with pytest.raises(ClassifierError, match="a ModelProto does not say where that is; give the path"):
        load_onnx(model)
