"""From a graph to a program: finds operators, inlines functions, computes what is known beforehand."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import onnx
import torch
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto
from torch import Tensor

from ...errors import ClassifierError
from ...foreign_code import explained
from . import operators
from .frames import Draft, Finished, Frame, Scope
from .functions import InferredTypes, standard_function, with_attributes
from .fusing import fuse
from .node import Beforehand, Node, attributes_of
from .on_quantised import adapted
from .program import NOTHING, UNUSED, Subgraph
from .table import Call, Operator, find_operator
from .types import computing
from .values import Quantised, Value, read_tensor

ADVICE = "attacks that need no gradients still work on this classifier, through ONNX Runtime (queries only)"
MOST_FOLDED, GROWTH = 2**20, 4
"""Elements up to which a value is computed beforehand; and beyond, how many times as large as what it is made of."""
MAX_DEPTH = 100
"""How deep functions may call each other."""


class Compiler:
    """Compiles the graph of a model that ``purifier.onnx.reader`` has accepted, and keeps what cannot be computed."""

    def __init__(self, model: ModelProto, file: str) -> None:
        operators.load()
        self.file = file
        self._functions = {(function.domain, function.name): function for function in model.functions}
        self._types = InferredTypes(model)
        self._opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
        self._missing: dict[str, None] = {}
        self._depth = 0
        self.root = Frame()

    def compile(self, graph: GraphProto, outputs: Collection[str]) -> Finished:
        """The program for some outputs.

        Raises
        ------
        ClassifierError
            Nodes that the outputs need have operators that cannot be computed, or are malformed.
        """
        scope = Scope(self.root)
        stored = {tensor.name for tensor in graph.initializer}
        inputs = []
        for value in graph.input:
            if value.name not in stored:
                scope.names[value.name] = self.root.new_slot()
                self.root.carrying.add(scope.names[value.name])
                if value.type.HasField("tensor_type"):
                    self.root.shaped.add(scope.names[value.name])
                inputs.append(scope.names[value.name])
        self._fill(graph, scope, self._opsets, needed_nodes(graph, outputs))
        if self._missing:
            raise ClassifierError(
                f"{self.file}: gradients of this graph cannot be computed: no support for "
                f"{', '.join(self._missing)}; {ADVICE}",
                self.file,
            )
        fuse(self.root)
        return self.root.finish(inputs, [self._slot(name, scope) for name in outputs])

    def _fill(self, graph: GraphProto, scope: Scope, opsets: Mapping[str, int], nodes: Iterable[NodeProto]) -> None:
        kept = list(nodes)
        read = {name for node in kept for name in node.input} | {value.name for value in graph.output}
        holds_bodies = any(attribute.HasField("g") for node in kept for attribute in node.attribute)
        for tensor in graph.initializer:
            if tensor.name in read or holds_bodies:
                with self._explained(f"the stored tensor {tensor.name!r}"):
                    scope.names[tensor.name] = scope.frame.constant(read_tensor(tensor))
        for node in kept:
            self._add(node, scope, opsets)

    def _add(self, proto: NodeProto, scope: Scope, opsets: Mapping[str, int]) -> None:
        function = self._functions.get((proto.domain, proto.op_type))
        if function is not None:
            return self._inline(function, proto, scope)
        domain = _domain(proto.domain)
        if (domain, proto.op_type) == ("", "Identity"):
            scope.names[proto.output[0]] = self._slot(proto.input[0], scope)
            return None
        opset = opsets.get(domain, 1 if domain else onnx.defs.onnx_opset_version())
        found = find_operator(domain, proto.op_type, opset)
        if found is not None:
            with self._explained(_title(proto)):
                return self._add_step(found, proto, scope, domain, opset, opsets)
        function = standard_function(proto, opset, self._types)
        if function is not None:
            return self._inline(function, proto, scope)
        self._missing[f"{proto.op_type} of domain {domain or 'ai.onnx'} (opset {opset})"] = None
        scope.names.update((name, scope.frame.new_slot()) for name in proto.output if name)
        return None

    def _inline(self, function: FunctionProto, proto: NodeProto, scope: Scope) -> None:
        inner = Scope(scope.frame)
        given = [self._slot(name, scope) for name in proto.input]
        given += [NOTHING] * (len(function.input) - len(given))
        inner.names.update(zip(function.input, given, strict=False))
        attributes = {attribute.name: attribute for attribute in (*function.attribute_proto, *proto.attribute)}
        opsets = self._opsets | {_domain(entry.domain): entry.version for entry in function.opset_import}
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ClassifierError(f"{self.file}: its functions call each other more than {MAX_DEPTH} deep", self.file)
        for node in function.node:
            self._add(with_attributes(node, attributes), inner, opsets)
        self._depth -= 1
        for formal, name in zip(function.output, proto.output, strict=False):
            if name:
                scope.names[name] = self._slot(formal, inner)

    def _add_step(
        self, found: Operator, proto: NodeProto, scope: Scope, domain: str, opset: int, opsets: Mapping[str, int]
    ) -> None:
        frame = scope.frame
        slots = [self._slot(name, scope) for name in proto.input]
        captured: list[int] = []
        within: set[str] = set()

        def compile_body(graph: GraphProto) -> Subgraph:
            inner, finished = self._body(graph, scope, opsets)
            body = Subgraph(finished.program, len(captured))
            captured.extend(inner.captured)
            within.update(finished.surrogates)
            return body

        node = Node(
            proto.op_type,
            domain,
            opset,
            tuple(proto.input),
            tuple(proto.output),
            attributes_of(proto),
            Beforehand(
                {place: frame.constants[slot] for place, slot in enumerate(slots) if slot in frame.constants},
                compile_body,
            ),
        )
        call = adapted(found.build(node), found.quantised)
        node.beforehand.forget()
        slots += captured
        if not found.random and all(slot in frame.constants for slot in slots):
            known = _folded(call, [frame.constants[slot] for slot in slots], always=not slots)
            if known is not None:
                scope.names.update((n, frame.constant(v)) for n, v in zip(proto.output, known, strict=False) if n)
                return
        outputs = tuple(frame.new_slot() if name else UNUSED for name in proto.output)
        scope.names.update((name, slot) for name, slot in zip(proto.output, outputs, strict=True) if name)
        closed = found.host | found.blind
        carried = {slot for place, slot in enumerate(slots) if place not in closed and slot in frame.carrying}
        if not found.differentiable:
            carried = set()
        surrogates = frozenset({*within, *([proto.op_type] if found.straight(node) else [])} if carried else ())
        if carried:
            frame.carrying.update(outputs)
        way = frozenset(carried), surrogates
        fixed = _follow_shapes(frame, found, proto.op_type, slots, outputs)
        frame.drafts.append(Draft(call, tuple(slots), outputs, found.host, _title(proto), *way, node, fixed))

    def _body(self, graph: GraphProto, scope: Scope, opsets: Mapping[str, int]) -> tuple[Frame, Finished]:
        inner = Scope(Frame(scope.frame), scope)
        inputs = []
        for value in graph.input:
            inner.names[value.name] = inner.frame.new_slot()
            inner.frame.carrying.add(inner.names[value.name])
            inputs.append(inner.names[value.name])
        self._fill(graph, inner, opsets, needed_nodes(graph, [value.name for value in graph.output]))
        fuse(inner.frame)
        return inner.frame, inner.frame.finish(inputs, [self._slot(value.name, inner) for value in graph.output])

    def _slot(self, name: str, scope: Scope) -> int:
        found = scope.find(name)
        if found is None:
            raise ClassifierError(
                f"{self.file}: nothing before it computes {name!r}, which a node reads; run onnx.checker.check_model "
                "on it, and export it again",
                self.file,
            )
        return found

    def _explained(self, what: str) -> Any:
        return explained(
            f"{self.file}: gradients of this graph cannot be computed: {what} failed",
            partial(ClassifierError, path=self.file),
            ADVICE,
        )


def _follow_shapes(frame: Frame, found: Operator, op_type: str, slots: Sequence[int], outputs: Sequence[int]) -> bool:
    """Note which outputs the shapes of the inputs determine; return whether they determine the values."""
    if found.random or not found.shaped:
        return False
    asks = op_type in ("Shape", "Size")
    fixed = frame.is_shaped(slots[0]) if asks else all(frame.is_fixed(slot) for slot in slots)
    if fixed:
        frame.fixed.update(outputs)
    read = [slot for place, slot in enumerate(slots) if place in found.host]
    if fixed or (all(frame.is_shaped(slot) for slot in slots) and all(frame.is_fixed(slot) for slot in read)):
        frame.shaped.update(outputs)
    return fixed


def needed_nodes(graph: GraphProto, outputs: Collection[str]) -> list[NodeProto]:
    """The nodes on which the outputs depend, each after those that it reads; some tools write them in another order."""
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    reads = [sorted({makers[name] for name in _reads(node) if name in makers}) for node in graph.node]
    ordered: dict[int, None] = {}
    waiting = [(makers[name], False) for name in reversed([*outputs]) if name in makers]
    entered: set[int] = set()
    while waiting:
        place, done = waiting.pop()
        if done:
            ordered[place] = None
        elif place not in entered:
            entered.add(place)
            waiting.append((place, True))
            waiting += [(before, False) for before in reversed(reads[place])]
    return [graph.node[place] for place in _as_written(ordered, reads)]


def _as_written(ordered: Iterable[int], reads: Sequence[Sequence[int]]) -> list[int]:
    """The nodes in the order of the file, if that is possible."""
    kept = list(ordered)
    return sorted(kept) if all(before < place for place in kept for before in reads[place]) else kept


def _reads(node: NodeProto) -> set[str]:
    """The names that a node reads, those in its bodies included."""
    found = set(node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            found |= {value.name for value in graph.output}
            found.update(*(_reads(inner) for inner in graph.node))
    return found


def _folded(call: Call, given: list[Value], *, always: bool) -> list[Value] | None:
    """The outputs of a step whose inputs are all known, unless they would take much more memory than these."""
    with torch.no_grad(), computing(None, torch.device("cpu")):
        found = call(*given)
    outputs = list(found) if type(found) is tuple else [found]
    size = sum(_elements(value) for value in outputs)
    if not always and size > max(MOST_FOLDED, GROWTH * sum(_elements(value) for value in given)):
        return None
    return [_owned(value) for value in outputs]


def _elements(value: Value) -> int:
    if isinstance(value, list):
        return sum(_elements(part) for part in value)
    held = value.values if isinstance(value, Quantised) else value
    return held.numel() if isinstance(held, Tensor) else 0


def _owned(value: Value) -> Value:
    """A tensor with memory of its own, because a module moves and converts what it holds."""
    return value.contiguous() if isinstance(value, Tensor) else value


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _title(proto: NodeProto) -> str:
    name = proto.name or next(iter(proto.output), "")
    return f"{proto.op_type} {name!r}"
