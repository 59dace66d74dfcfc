"""A guard as a model of NVIDIA Triton; what is written is parsed by Triton's own protobuf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format

import purifier
from nets import trained
from onnx_models import FLOAT, linear, model_of
from purifier.errors import ConfigError, ExportError, OutputError
from purifier.onnx.runtime import CPU


def parsed(folder: Path) -> Any:
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


@pytest.fixture
def guarded() -> purifier.GuardedModule:
    filter = purifier.load("demo-plain")
    purifier.calibrate(filter, "demo:100", fpr=0.2)
    return purifier.guard(trained("net"), filter, score=True, on_reject="flag")


def test_the_repository_holds_the_file_and_what_triton_needs(guarded: Any, tmp_path: Path) -> None:
    path = tmp_path / "models" / "guarded"
    report = purifier.export(guarded, path, format="triton", instances=2, max_batch=16, delay=500, device="tensorrt")
    assert (report.format, report.path) == ("triton", path) and max(report.max_error.values()) < 1e-4
    assert sorted(str(file.relative_to(path)) for file in path.rglob("*")) == ["1", "1/model.onnx", "config.pbtxt"]
    config = parsed(path)
    assert (config.name, config.platform, config.max_batch_size) == ("guarded", "onnxruntime_onnx", 16)
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    (group,) = config.instance_group
    assert group.count == 2 and group.Kind.Name(group.kind) == "KIND_GPU"
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt" and accelerator.parameters["precision_mode"] == "FP16"
    (warm_up,) = config.model_warmup
    assert warm_up.batch_size == 16 and list(warm_up.inputs["input"].dims) == [1, 28, 28]


def test_inputs_and_outputs_are_those_of_the_file(guarded: Any, tmp_path: Path) -> None:
    path = purifier.export(guarded, tmp_path / "guarded", format="triton", device="cpu").path
    session, config = onnxruntime.InferenceSession(path / "1" / "model.onnx", providers=[CPU]), parsed(path)
    values = session.run(None, {"input": np.random.default_rng(0).random((3, 1, 28, 28), dtype=np.float32)})
    assert [output.name for output in config.output] == [output.name for output in session.get_outputs()]
    for output, value in zip(config.output, values, strict=True):
        shape = list(output.reshape.shape) if output.HasField("reshape") else list(output.dims)
        assert list(value.shape[1:]) == shape
    kinds = [type(output).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number for output in config.output]
    names = [kind[output.data_type].name for kind, output in zip(kinds, config.output, strict=True)]
    assert names == ["TYPE_FP32", "TYPE_FP32", "TYPE_BOOL"]
    assert not config.HasField("optimization")


def test_a_fixed_batch_is_served_as_it_is(tmp_path: Path) -> None:
    model = linear()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    session = purifier.guard(model, "blur", image_shape=(3, 8, 8), providers=[CPU])
    config = parsed(purifier.export(session, tmp_path / "four", format="triton").path)
    assert config.max_batch_size == 4 and not config.HasField("dynamic_batching")


def test_precision_and_batch_are_those_of_the_file(tmp_path: Path) -> None:
    path, guarded = tmp_path / "guarded", purifier.guard(trained("net"), "demo-plain")
    made = purifier.export(guarded, path, format="triton", precision="int8", batch=4, data="demo:128", sample=4)
    assert parsed(path).max_batch_size == 4 and not parsed(path).HasField("dynamic_batching")
    kinds = {weight.data_type for weight in onnx.load(path / "1" / "model.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert made.card["precision"] == "int8" and made.card["robust"]["route"] == "bpda"


def test_a_model_that_exists_is_kept(guarded: Any, tmp_path: Path) -> None:
    path = tmp_path / "guarded"
    path.mkdir()
    with pytest.raises(OutputError, match="guarded exists; choose another name for the model"):
        purifier.export(guarded, path, format="triton")
    assert not list(path.iterdir()) and [file.name for file in tmp_path.iterdir()] == ["guarded"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "tpu"}, "device: expected one of cpu, cuda, tensorrt, got 'tpu'"),
        ({"instances": 0}, "instances: expected a whole number of at least 1, got 0"),
        ({"delay": -1}, "delay: expected a whole number of at least 0"),
        ({"max_batch": "many"}, "max_batch: expected a whole number of at least 1, got 'many'"),
        ({"opset": 18}, "has no option 'opset'"),
    ],
)
def test_wrong_options_are_errors(options: Any, says: str, guarded: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        purifier.export(guarded, tmp_path / "a" / "guarded", format="triton", **options)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_served_leaves_nothing(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        helper.make_node("Flatten", ["means"], ["logits"]),
        helper.make_node("SequenceConstruct", ["logits"], ["all"]),
    ]
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    model = model_of(nodes, inputs=[("images", FLOAT, ["N", 3, 8, 8])], outputs=[("logits", FLOAT, ["N", 3])])
    model.graph.output.append(helper.make_value_info("all", kind))
    session = purifier.guard(model, "identity", providers=[CPU], output="logits")
    with pytest.raises(ExportError, match="output 'all' is a .*Triton serves tensors only"):
        purifier.export(session, tmp_path / "models" / "guarded", format="triton")
    assert not list(tmp_path.iterdir())


def test_the_command_takes_an_exporters_own_options(command: Any, tmp_path: Path) -> None:
    path = tmp_path / "guarded"
    options = ["--classifier", "demo", "--purifier", "demo-plain", "--out", path, "--format", "triton"]
    code, shown, _ = command("export", *options, "--set", "instances=3", "--set", "device=cpu")
    assert code == 0 and "triton, opset" in shown.replace("\n", " ")
    assert parsed(path).instance_group[0].count == 3
    code, _, said = command("export", *options[:-3], tmp_path / "c", "--format", "triton", "--set", "instances=x")
    assert code == 2 and "option 'instances': expected int, got 'x'" in said
    code, _, said = command("export", *options[:-3], tmp_path / "b", "--format", "triton", "--set", "depth=3")
    assert code == 2 and "no option 'depth'" in said


def test_tensors_of_the_file_are_those_of_the_guard(guarded: Any, tmp_path: Path) -> None:
    path = purifier.export(guarded, tmp_path / "guarded", format="triton").path / "1" / "model.onnx"
    pixels = torch.rand(4, 1, 28, 28)
    logits = onnxruntime.InferenceSession(path, providers=[CPU]).run(None, {"input": pixels.numpy()})[0]
    np.testing.assert_allclose(logits, guarded(pixels)[0], atol=1e-4)
