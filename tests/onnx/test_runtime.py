from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

from purifier.errors import ClassifierError, ConfigError
from purifier.onnx import runtime


def model(op_type: str = "Neg") -> ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(op_type, ["x"], ["y"])], "graph", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_session_opens_from_a_model_its_bytes_and_its_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model().SerializeToString())
    for source in (model(), model().SerializeToString(), path, str(path)):
        session = runtime.open_session(source, providers=[runtime.CPU])
        np.testing.assert_array_equal(session.run(None, {"x": np.ones(2, np.float32)})[0], [-1, -1])


def test_the_best_working_provider_is_the_default() -> None:
    best = runtime.CUDA if runtime.CUDA in runtime.working_providers() else runtime.CPU
    assert runtime.open_session(model()).get_providers()[0] == best


def test_the_cpu_works_everywhere() -> None:
    assert runtime.CPU in runtime.working_providers()


def test_an_unavailable_provider_is_an_error_naming_both() -> None:
    if runtime.CUDA in runtime.working_providers():
        pytest.skip("CUDA loads here")
    if runtime.CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is built without CUDA")
    with pytest.raises(ConfigError, match="expected CUDAExecutionProvider, got CPUExecutionProvider from ONNX Runtime"):
        runtime.open_session(model(), providers=[runtime.CUDA, runtime.CPU])


def test_a_provider_whose_libraries_are_missing_is_named_and_not_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Please install the libraries")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["Slow", runtime.CPU])
    monkeypatch.setattr(runtime, "loads", lambda name: name != "Slow")
    with pytest.raises(ConfigError, match="providers: Slow does not load here; run `purifier doctor`"):
        runtime.open_session(model(), providers=["Slow", runtime.CPU])
    with pytest.raises(ClassifierError, match="cannot open it"):
        runtime.open_session(model(), providers=[runtime.CPU])


@pytest.mark.gpu
def test_cuda_is_used_where_it_exists() -> None:
    session = runtime.open_session(model(), providers=[runtime.CUDA])
    assert session.get_providers()[0] == runtime.CUDA


def test_an_unknown_provider_is_an_error_naming_the_available() -> None:
    with pytest.raises(ConfigError, match="has no 'AbacusExecutionProvider', only .*CPUExecutionProvider"):
        runtime.open_session(model(), providers=["AbacusExecutionProvider"])
    with pytest.raises(ConfigError, match="expected at least one of"):
        runtime.open_session(model(), providers=[])
    assert not runtime.loads("AbacusExecutionProvider")


@pytest.mark.parametrize(
    "source", [b"not a model", model("Magic"), model().SerializeToString()[:30]], ids=["junk", "op", "cut"]
)
def test_models_that_onnxruntime_cannot_open_are_errors(source: bytes | ModelProto) -> None:
    with pytest.raises(ClassifierError, match=r"ONNX Runtime [\d.]+ cannot open it \("):
        runtime.open_session(source)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"no file .*nowhere\.onnx"):
        runtime.open_session(tmp_path / "nowhere.onnx")


def test_normal_use_logs_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    proto = model()
    proto.graph.initializer.append(helper.make_tensor("unused", TensorProto.FLOAT, [1], [1.0]))
    runtime.loads.cache_clear()
    runtime.open_session(proto)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("installed", [set(), {"onnxruntime-gpu"}, {"onnxruntime", "onnxruntime-gpu"}])
def test_each_installed_wheel_of_onnxruntime_is_named(installed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in installed:
            return "1.31.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert runtime.installed_wheels() == dict.fromkeys(installed, "1.31.0")
