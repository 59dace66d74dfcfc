"""Runs an ONNX Runtime session on tensors: inputs and outputs share memory with them, on whatever device that is."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..onnx.runtime import CUDA

ON_CUDA = {CUDA, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"}
"""Providers that take and return tensors in GPU memory."""


def device_of(session: onnxruntime.InferenceSession) -> torch.device:
    """Where a session's provider takes and gives tensors without copying them."""
    provider = session.get_providers()[0]
    if provider not in ON_CUDA:
        return torch.device("cpu")
    return torch.device("cuda", int(session.get_provider_options()[provider].get("device_id", 0)))


def run_on_tensors(
    session: onnxruntime.InferenceSession,
    outputs: Sequence[str],
    tensors: Mapping[str, Tensor],
    options: onnxruntime.RunOptions | None = None,
) -> list[Tensor]:
    """The named outputs, on the session's device.

    Parameters
    ----------
    session
        An open session; its ``run_with_iobinding`` is used.
    outputs
        Names of outputs that are tensors of numbers.
    tensors
        The inputs by name, contiguous. Those on another device than the session's are copied there.
    options
        ONNX Runtime's options of a run.
    """
    device = device_of(session)
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # ONNX Runtime computes in a stream of its own
    binding = session.io_binding()
    for name, tensor in moved.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.from_dlpack(tensor))
    for name in outputs:
        binding.bind_output(name, device.type, device.index or 0)
    session.run_with_iobinding(binding, options)
    return [from_dlpack(value) for value in binding.get_outputs()]


class FixedMemory:
    """Runs a session on tensors that stay where they are, as CUDA graphs need it: one graph for each shape of inputs.

    ONNX Runtime captures a graph at the first run with a number of its own (``gpu_graph_id``) and replays it later. The
    tensors that come back are copies. Calls of several threads take turns.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session, self._lock = session, threading.Lock()
        self._kept: dict[object, tuple[Mapping[str, Tensor], list[Tensor], onnxruntime.IOBinding, Any]] = {}

    def run(self, outputs: Sequence[str], tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """As ``run_on_tensors``."""
        device = device_of(self._session)
        key = (tuple(outputs), *((name, tensor.shape, tensor.dtype) for name, tensor in sorted(tensors.items())))
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._prepared(outputs, tensors, device, len(self._kept))
            inputs, found, binding, options = self._kept[key]
            for name, tensor in tensors.items():
                inputs[name].copy_(tensor)
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
            self._session.run_with_iobinding(binding, options)
            return [value.clone() for value in found]

    def _prepared(
        self, outputs: Sequence[str], tensors: Mapping[str, Tensor], device: torch.device, number: int
    ) -> tuple[Mapping[str, Tensor], list[Tensor], onnxruntime.IOBinding, Any]:
        """Inputs, outputs and their binding for these shapes; a run that is not captured tells those of the outputs."""
        inputs = {name: torch.empty_like(tensor, device=device).copy_(tensor) for name, tensor in tensors.items()}
        free = onnxruntime.RunOptions()
        free.add_run_config_entry("gpu_graph_id", "-1")
        found = run_on_tensors(self._session, outputs, inputs, free)
        binding = self._session.io_binding()
        for name, tensor in inputs.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.from_dlpack(tensor))
        for name, tensor in zip(outputs, found, strict=True):
            binding.bind_ortvalue_output(name, onnxruntime.OrtValue.from_dlpack(tensor))
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number + 1))
        return inputs, found, binding, options


def captures(session: onnxruntime.InferenceSession) -> bool:
    """Whether a session was opened with CUDA graphs (the provider's option ``enable_cuda_graph``)."""
    options = session.get_provider_options()[session.get_providers()[0]]
    return options.get("enable_cuda_graph", "0") in ("1", "true", "True")


def is_numeric(output: Any) -> bool:
    """Whether an output of a session is a tensor of numbers, not of strings, and not a map or sequence."""
    return str(output.type).startswith("tensor(") and output.type != "tensor(string)"
