"""A node as its operator sees it: attributes, opset, and what is known about its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from onnx import AttributeProto, GraphProto, NodeProto, helper
from torch import Tensor

from .values import Quantised, Value, read_tensor


class Body(Protocol):
    """A compiled subgraph."""

    input_count: int
    output_count: int

    def __call__(self, inputs: Sequence[Value], captured: Sequence[Value]) -> list[Value]:
        """Its outputs; ``captured`` are the values that the node's call was given after its own inputs."""
        ...


@dataclass
class Beforehand:
    """What is known while a graph is compiled, and dropped afterwards: it would keep all weights in memory."""

    constants: Mapping[int, Value] = field(default_factory=dict)
    """Values of the inputs that are known, by position."""
    compile_body: Callable[[GraphProto], Body] | None = None

    def forget(self) -> None:
        self.constants, self.compile_body = {}, None


@dataclass(frozen=True)
class Node:
    """A node of a graph, once its operator is found.

    ``opset`` is the version that the model imports of the operator's domain.
    """

    op_type: str
    domain: str
    opset: int
    inputs: tuple[str, ...]
    """Names, empty where absent."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    beforehand: Beforehand = field(default_factory=Beforehand)

    @property
    def constants(self) -> Mapping[int, Value]:
        """Values of the inputs that are known beforehand, by position."""
        return self.beforehand.constants

    def has(self, name: str) -> bool:
        return name in self.attributes

    def integer(self, name: str, default: int = 0) -> int:
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float = 0.0) -> float:
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str = "") -> str:
        found = self.attributes.get(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        return [int(number) for number in self.attributes.get(name, default)]

    def numbers(self, name: str, default: Sequence[float] = ()) -> list[float]:
        return [float(number) for number in self.attributes.get(name, default)]

    def tensor(self, name: str) -> Tensor | Quantised | None:
        return read_tensor(self.attributes[name]) if name in self.attributes else None

    def body(self, name: str) -> Body:
        """The compiled subgraph in an attribute."""
        assert self.beforehand.compile_body is not None
        return self.beforehand.compile_body(self.attributes[name])

    def constant(self, position: int) -> Tensor | None:
        """The input at a position, if it is a tensor that is known beforehand."""
        found = self.constants.get(position)
        return found if isinstance(found, Tensor) else None

    def known_integers(self, position: int) -> list[int] | None:
        """The integers at a position, if they are known beforehand."""
        found = self.constant(position)
        return None if found is None else integers_of(found)

    def given(self, position: int) -> bool:
        """Whether there is an input at a position."""
        return position < len(self.inputs) and bool(self.inputs[position])


def integers_of(value: Tensor) -> list[int]:
    """A tensor of any rank as Python integers."""
    return [int(number) for number in value.reshape(-1).tolist()]


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name; those that are absent references are left out."""
    found = {}
    for attribute in node.attribute:
        if attribute.type != AttributeProto.UNDEFINED or not attribute.ref_attr_name:
            found[attribute.name] = helper.get_attribute_value(attribute)
    return found
