"""A graph with 8-bit weights and activations, calibrated on images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from purifier.errors import ExportError
from purifier.foreign_code import explained
from purifier.onnx.graphs import all_nodes
from purifier.onnx.torch_export import innermost_cause

from ._steps import name_steps

KEPT_FLOAT = {"Where"}
"""Operators that a guard chooses rows with: NaN for a bad image, or another answer. 8 bits have no NaN."""
ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
NOTES = ("onnx.infer", "onnx.quant.pre_process")

Feeds = Iterable[Mapping[str, np.ndarray[Any, Any]]]


def quantised(file: Path, path: Path, feeds: Feeds, *, large: bool = False) -> ModelProto:
    """The float32 model in ``file`` with QuantizeLinear and DequantizeLinear around its operators (QDQ).

    ONNX Runtime's static quantisation: activations are uint8, for CPUs multiply those fastest, with the ranges
    that they have for ``feeds``; weights are int8 with a scale for each channel. The gradient steps of a purifier,
    unrolled or in a Loop, stay float32: they would add up the rounding of each. ``large`` says that the weights are
    in a file of their own.

    Raises
    ------
    ExportError
        The model is quantised already, or ONNX Runtime cannot quantise it.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    failed, advice = partial(ExportError, path=path), "export with precision='fp16' (--precision fp16)"
    with tempfile.TemporaryDirectory() as folder:
        prepared, made = Path(folder, "prepared.onnx"), Path(folder, "made.onnx")
        beside = {"external_data_location": "prepared.data"} if large else {}
        with explained(f"{path}: ONNX Runtime cannot quantise it", failed, advice, describe=innermost_cause):
            # Symbolic shape inference fails on some of torch's graphs; what it adds is for transformers.
            quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True, save_as_external_data=large, **beside)
            model = onnx.load(prepared)
            rounding = next((node.op_type for node in all_nodes(model) if node.op_type in ROUNDING), None)
            steps = name_steps(model)
            onnx.save(model, prepared, save_as_external_data=large, location="named.data" if large else None)
            if rounding is None:
                quantize_static(
                    str(prepared),
                    str(made),
                    _reader(feeds),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    reduce_range=True,  # seven bits: products of eight overflow on CPUs without VNNI
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry} - KEPT_FLOAT),
                    nodes_to_exclude=steps,
                    use_external_data_format=large,
                )
        if rounding is not None:
            raise ExportError(
                f"{path}: the classifier is quantised already, its graph has {rounding}; export it as it is, with "
                "precision='fp32' (--precision fp32)",
                path,
            )
        return _tidied(onnx.load(made))


def _tidied(model: ModelProto) -> ModelProto:
    """The model without the operator sets that no node is of and the notes that ONNX Runtime makes for itself."""
    used = {node.domain for node in all_nodes(model)} | {""}
    versions = {entry.domain: entry.version for entry in model.opset_import if entry.domain in used}
    notes = {entry.key: entry.value for entry in model.metadata_props if entry.key not in NOTES}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*pair) for pair in sorted(versions.items()))
    onnx.helper.set_model_props(model, dict(sorted(notes.items())))
    return model


def _reader(feeds: Feeds) -> Any:
    """``feeds`` in the form in which ONNX Runtime reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.waiting = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            found = next(self.waiting, None)
            return None if found is None else dict(found)

    return Reader()
