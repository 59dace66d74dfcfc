"""An ONNX graph as a torch module, differentiable and on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, nn

from ...errors import ConfigError
from .compiling import Compiler
from .specialising import MOST, Specialised, keeping, specialised
from .types import FLOATS, INTEGERS, computing
from .values import Quantised, Value, genuine, rounded

CONSTANT = "constant_"
SMALL = 64
"""Elements of the largest integer constant that stays on the CPU: it may be a shape, which is read as numbers."""
ROUNDED_INPUT = "uint8 input"


class GraphModule(nn.Module):
    """Computes an ONNX graph with torch.

    Types are those of the graph. After ``.double()``, ``.half()`` or any other conversion, all its floats (FLOAT,
    FLOAT16, BFLOAT16 and DOUBLE: weights, Casts, constants) have the one new type, so that a double module computes in
    float64 throughout. Initializers are constants, even those that are listed as inputs. A module can be copied, but
    not pickled. The names in its state dict are those of any module that is made of the same model and outputs.

    Parameters
    ----------
    model
        An ONNX model that ``purifier.onnx.reader`` has accepted, with all its weights.
    outputs
        Names of the outputs to compute, which may also be values inside the graph; all outputs by default. What they
        do not need is left out, and need not be supported.
    file
        How errors call the model.

    Raises
    ------
    ClassifierError
        The graph uses an operator that has no entry in the table, or is malformed.
    """

    straight_through: tuple[str, ...]
    """Operators on the gradient's way that have no useful derivative (rounding, casts to integers), whose gradient is
    therefore that of the identity; and ``uint8 input`` if images are rounded. Empty if gradients are exact."""

    def __init__(self, model: ModelProto, outputs: Sequence[str] | None = None, file: str = "the ONNX model") -> None:
        super().__init__()
        stored = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in stored]
        self.input_names = tuple(value.name for value in inputs)
        self.output_names = tuple(outputs or (value.name for value in model.graph.output))
        self._input_types = tuple(value.type.tensor_type.elem_type for value in inputs)
        compiler = Compiler(model, file)
        finished = compiler.compile(model.graph, self.output_names)
        self._program = keeping(finished.program)
        self._specialised: dict[Any, Specialised] = {}
        """By the shapes of the inputs, precision and device."""
        self._has_fixed = any(step.fixed for step in self._program.steps)
        read = {slot for step in self._program.steps for slot in step.inputs} | set(self._program.outputs)
        self._kept: list[tuple[int, int | None]] = []
        """Slots of constants that are buffers, and their element types where these are not those of the buffers."""
        self._others: dict[int, Value] = {}
        for slot, value in compiler.root.constants.items():
            if slot in read:
                self._keep(slot, value)
        kinds = zip(self._program.inputs, self._input_types, strict=True)
        rounded_input = any(kind == TensorProto.UINT8 and slot in finished.inputs for slot, kind in kinds)
        self.straight_through = (*([ROUNDED_INPUT] if rounded_input else []), *sorted(finished.surrogates))
        self._precision: torch.dtype | None = None
        self._device = torch.device("cpu")

    def forward(self, *given: Any, **named: Any) -> dict[str, Value]:
        """The outputs by name: tensors, lists for sequences, None for absent optionals.

        Inputs come in the graph's order or by name, as tensors or lists of tensors. For an integer input floats may be
        given, which are rounded with a straight-through gradient. An output of integers that carries a gradient is
        returned as floats of the same values.

        Raises
        ------
        ConfigError
            Inputs are missing or not the graph's.
        """
        if len(given) > len(self.input_names) or named.keys() - set(self.input_names[len(given) :]):
            raise ConfigError(f"expected the inputs {', '.join(self.input_names)}, got {len(given)} and {[*named]}")
        fed = dict(zip(self.input_names, given, strict=False)) | named
        missing = [name for name in self.input_names if name not in fed]
        if missing:
            raise ConfigError(f"expected the inputs {', '.join(self.input_names)}; {', '.join(missing)} not given")
        slots: list[Value] = [None] * self._program.size
        buffers = self._buffers
        for slot, kind in self._kept:
            held = buffers[f"{CONSTANT}{slot}"]
            assert held is not None
            slots[slot] = held if kind is None else Quantised(held.float(), kind)
        for slot, value in self._others.items():
            slots[slot] = value
        for slot, name, kind in zip(self._program.inputs, self.input_names, self._input_types, strict=True):
            slots[slot] = self._fed(fed[name], kind)
        with computing(self._precision, self._device):
            found = self._run(slots)
        return {name: _given_back(value) for name, value in zip(self.output_names, found, strict=True)}

    def _run(self, slots: list[Value]) -> list[Value]:
        """The outputs; what the shapes of the inputs determine is computed once."""
        given = [slots[slot] for slot in self._program.inputs]
        if not self._has_fixed or not all(isinstance(value, Tensor | Quantised) for value in given):
            return self._program.run(slots)
        shapes = tuple((value.values if isinstance(value, Quantised) else value).shape for value in given)
        key = (shapes, self._precision, self._device)
        known = self._specialised.get(key)
        if known is not None:
            for slot, value in known.values.items():
                slots[slot] = value
            return known.program.run(slots)
        found = self._program.run(slots)
        made = specialised(self._program, slots)
        if made is not None:
            if len(self._specialised) >= MOST:
                self._specialised.pop(next(iter(self._specialised)))
            self._specialised[key] = made
        return found

    def count_steps(self) -> int:
        """The number of steps that a call computes, those of bodies apart."""
        return len(self._program.steps)

    def _fed(self, value: Value, kind: int) -> Value:
        if not isinstance(value, Tensor):
            return [self._fed(part, kind) for part in value] if isinstance(value, list) else value
        if kind in FLOATS:
            return value.to(self._precision or FLOATS[kind])
        if kind in INTEGERS and value.is_floating_point():
            return Quantised(rounded(value if value.dtype == torch.float64 else value.float()), kind)
        return value

    def _keep(self, slot: int, value: Value) -> None:
        if isinstance(value, Quantised):
            self.register_buffer(f"{CONSTANT}{slot}", value.genuine())
            self._kept.append((slot, value.element_type))
        elif isinstance(value, Tensor) and (value.is_floating_point() or value.numel() > SMALL):
            self.register_buffer(f"{CONSTANT}{slot}", value)
            self._kept.append((slot, None))
        else:
            self._others[slot] = value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GraphModule:
        """Note where and in which precision the module is afterwards: a conversion makes one type of all floats."""
        probes = [fn(torch.zeros(1, dtype=dtype)) for dtype in (torch.float16, torch.float32)]
        if probes[0].dtype == probes[1].dtype:
            self._precision = probes[0].dtype
        self._device = probes[0].device
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        return self


def _given_back(value: Value) -> Value:
    if isinstance(value, list):
        return [_given_back(part) for part in value]
    if isinstance(value, Quantised) and value.values.requires_grad:
        return value.values
    return genuine(value)
