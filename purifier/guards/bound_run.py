"""Runs an ONNX Runtime session on tensors: inputs and outputs share memory with them, on whatever device that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..onnx.runtime import CUDA

ON_CUDA = {CUDA, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"}
"""Providers whose tensors lie in CUDA's memory."""


def device_of(session: onnxruntime.InferenceSession) -> torch.device:
    """Where a session's provider takes and gives tensors without copying them."""
    provider = session.get_providers()[0]
    if provider not in ON_CUDA:
        return torch.device("cpu")
    return torch.device("cuda", int(session.get_provider_options()[provider].get("device_id", 0)))


def run_on_tensors(
    session: onnxruntime.InferenceSession, outputs: Sequence[str], tensors: Mapping[str, Tensor]
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
    session.run_with_iobinding(binding)
    return [from_dlpack(value) for value in binding.get_outputs()]


def is_numeric(output: Any) -> bool:
    """Whether an output of a session is a tensor of numbers, not of strings, and not a map or sequence."""
    return str(output.type).startswith("tensor(") and output.type != "tensor(string)"
