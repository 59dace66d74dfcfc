from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnx_models
import purifier
from purifier.errors import ClassifierError
from purifier.onnx import split_file
from purifier.onnx.reader import read_onnx
from purifier.onnx.runtime import CPU
from purifier.onnx.split_file import ALIGNMENT, read_split
from purifier.onnx.weights import is_mark

WEIGHT = np.random.default_rng(1).normal(size=(192, 50)).astype(np.float32)
IMAGES = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)


def classifier(name: str = "weight", weight: np.ndarray = WEIGHT) -> ModelProto:
    """Linear; its ``name`` moves its weight to another address in the file."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", name], ["logits"]),
    ]
    inputs = [("images", onnx_models.FLOAT, ["N", 3, 8, 8])]
    outputs = [("logits", onnx_models.FLOAT, ["N", 50])]
    return onnx_models.model_of(nodes, inputs=inputs, outputs=outputs, initializers={name: weight})


def written(folder: Path, content: ModelProto | bytes) -> Path:
    path = folder / "classifier.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def logits(session: onnxruntime.InferenceSession) -> np.ndarray:
    return np.asarray(session.run(None, {"images": IMAGES})[0])


@pytest.mark.parametrize("name", ["w", "we", "wei", "weig"])
def test_a_large_weight_is_read_apart_and_aligned_wherever_it_is_in_the_file(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, classifier(name))
    read, size = read_split(path)
    array = read.weights[name]
    assert isinstance(array, np.ndarray) and np.array_equal(array, WEIGHT) and array.dtype == np.float32
    assert array.ctypes.data % ALIGNMENT == 0 and not array.flags.writeable
    assert size == path.stat().st_size and read.bare.ByteSize() < 1000
    checked = read_onnx(path)
    assert is_mark(checked.bare.graph.initializer[0]) and checked.whole == onnx.load(path)


def with_two_graphs() -> bytes:
    """Protobuf merges them: the nodes of one, the weight of the other."""
    nodes, weight = classifier(), ModelProto()
    weight.graph.initializer.extend(nodes.graph.initializer)
    del nodes.graph.initializer[:]
    return bytes(nodes.SerializeToString() + weight.SerializeToString())


def with_two_contents() -> bytes:
    """Protobuf takes the last one: zeros come first."""
    model = classifier()
    stored = model.graph.initializer.pop()
    part = bytes(stored.SerializeToString())
    zeros = TensorProto(raw_data=bytes(WEIGHT.nbytes)).SerializeToString()
    graph = model.graph.SerializeToString() + field(split_file.INITIALIZER, zeros + part)
    model.ClearField("graph")
    return bytes(model.SerializeToString()) + field(split_file.GRAPH, graph)


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | split_file.BYTES]) + split_file._varint(len(content)) + content


def with_a_field_of_every_kind() -> bytes:
    """Fields 100 to 103 do not exist; the last one is a group."""
    unknown = [b"\xa0\x06\x05", b"\xa9\x06" + bytes(8), b"\xb5\x06" + bytes(4), b"\xbb\x06\xbc\x06"]
    return b"".join(unknown) + bytes(classifier().SerializeToString())


def changed(change: Callable[[ModelProto], object]) -> bytes:
    model = classifier()
    change(model)
    return bytes(model.SerializeToString())


def twice(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(2 * WEIGHT, "weight"))


def as_an_input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("weight", onnx_models.FLOAT, [192, 50]))


ODD: dict[str, bytes] = {
    "two graphs": with_two_graphs(),
    "two contents": with_two_contents(),
    "unknown fields": with_a_field_of_every_kind(),
    "a comment": changed(lambda model: setattr(model.graph.initializer[0], "doc_string", "kept")),
    "an input": changed(as_an_input),
    "half": bytes(classifier(weight=WEIGHT.astype(np.float16)).SerializeToString()),
    "a place": changed(lambda model: setattr(model.graph.initializer[0], "data_location", TensorProto.DEFAULT)),
    "a name twice": changed(twice),
    "no bytes": changed(lambda model: model.graph.initializer[0].ClearField("raw_data")),
    "a wrong size": changed(lambda model: model.graph.initializer[0].dims.append(2)),
    "a negative size": changed(lambda model: model.graph.initializer[0].dims.extend([-1, -1])),
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_what_is_written_otherwise_is_read_as_protobuf_reads_it(tmp_path: Path, content: bytes) -> None:
    read, _ = read_split(written(tmp_path, content))
    whole = ModelProto.FromString(content)
    for tensor in read.bare.graph.initializer:
        if tensor.name in read.weights:
            array = read.weights[tensor.name]
            assert isinstance(array, np.ndarray)
            tensor.raw_data = array.tobytes()
    if content is ODD["a place"]:
        assert list(read.weights) == ["weight"]
    assert read.bare == whole


def test_a_file_of_very_many_fields_is_left_to_protobuf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, classifier())
    assert read_split(path)[0].weights
    monkeypatch.setattr(split_file, "MAX_FIELDS", 5)
    read, _ = read_split(path)
    assert not read.weights and read.bare == classifier()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_file_cut_anywhere_is_an_error(tmp_path: Path, share: float) -> None:
    content = classifier().SerializeToString()
    path = written(tmp_path, content[: int(share * len(content))])
    with pytest.raises(ClassifierError, match="damaged or not ONNX"):
        purifier.guard(path, "blur")


@pytest.mark.parametrize("extra", [2, -1], ids=["too few bytes", "a negative size"])
def test_a_weight_whose_bytes_do_not_fit_its_shape_is_an_error(tmp_path: Path, extra: int) -> None:
    path = written(tmp_path, changed(lambda model: model.graph.initializer[0].dims.append(extra)))
    with pytest.raises(ClassifierError):
        purifier.guard(path, "blur", providers=[CPU])


@pytest.mark.parametrize("replace", ["in place", "cut"])
def test_a_session_outlives_its_file(tmp_path: Path, replace: str) -> None:
    path = written(tmp_path, classifier())
    session = purifier.guard(path, "blur", providers=[CPU])
    expected = logits(purifier.guard(classifier(), "blur", providers=[CPU]))
    with path.open("r+b") as file:
        if replace == "cut":
            file.truncate(10)
        else:
            file.write(bytes(path.stat().st_size))
    assert np.array_equal(logits(session), expected)
    assert session.classifier == classifier()
    assert np.array_equal(logits(pickle.loads(pickle.dumps(session))), expected)  # noqa: S301  # its own
    whole = onnxruntime.InferenceSession(session.model.SerializeToString(), providers=[CPU])
    assert np.array_equal(logits(whole), expected)


def test_the_weights_of_a_file_are_in_memory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, classifier())
    session = purifier.guard(path, "blur", providers=[CPU])
    assert "classifier" not in vars(session)
    assert session._stored.bare.ByteSize() + session._bare.ByteSize() < WEIGHT.nbytes
    (lent,) = session._arrays.values()
    (stored,) = session._stored.weights.values()
    assert isinstance(stored, np.ndarray) and np.shares_memory(lent, stored)
