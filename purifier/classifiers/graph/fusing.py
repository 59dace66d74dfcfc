"""Several steps that torch has one function for become one step, which needs less time and memory.

A pattern is matched from its last step backwards. Steps before it stay as long as others read them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .frames import Draft, Frame
from .values import Quantised

CLOSE = 1e-5
"""Relative difference up to which a constant is the one of a pattern."""


class Drafts:
    """The drafts of a frame by what they make."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self._makers = {slot: draft for draft in frame.drafts for slot in draft.outputs}

    def maker(self, slot: int, *types: str) -> Draft | None:
        """The draft that makes a slot, if it is one of these operators of ONNX."""
        found = self._makers.get(slot)
        return found if found is not None and is_one_of(found, types) else None

    def known(self, slot: int) -> Tensor | None:
        found = self.frame.constants.get(slot)
        return found if isinstance(found, Tensor) else None

    def number(self, slot: int) -> float | None:
        """A constant that is one number."""
        found = self.known(slot)
        return float(found) if found is not None and found.numel() == 1 else None

    def is_number(self, slot: int, wanted: float) -> bool:
        found = self.number(slot)
        return found is not None and math.isclose(found, wanted, rel_tol=CLOSE)

    def other(self, draft: Draft, wanted: float) -> int | None:
        """Of two inputs the one beside a constant."""
        for first, second in both_ways(draft.inputs):
            if self.is_number(second, wanted):
                return first
        return None

    def made(self, last: Draft, call: Callable[..., Any], inputs: Sequence[int]) -> Draft:
        """A draft that stands for a pattern whose last draft is ``last``."""
        carried = frozenset(inputs) & self.frame.carrying if last.carried else frozenset[int]()
        return dataclasses.replace(last, call=call, inputs=tuple(inputs), carried=carried, host=frozenset(), node=None)


def fuse(frame: Frame) -> None:
    """Replace patterns among the drafts of a frame, in place."""
    drafts = Drafts(frame)
    for pattern in PATTERNS:
        for place, draft in enumerate(frame.drafts):
            if draft.node is not None and len(draft.outputs) == 1:
                found = pattern(drafts, draft)
                if found is not None:
                    frame.drafts[place] = found
        drafts = Drafts(frame)


def is_one_of(draft: Draft, types: Sequence[str]) -> bool:
    """Whether a draft is one of these operators of ONNX."""
    return draft.node is not None and draft.node.domain == "" and draft.node.op_type in types


def attribute(draft: Draft, name: str, default: Any = None) -> Any:
    return default if draft.node is None else draft.node.attributes.get(name, default)


def both_ways(inputs: Sequence[int]) -> Iterator[tuple[int, int]]:
    if len(inputs) == 2:
        yield inputs[0], inputs[1]
        yield inputs[1], inputs[0]


def _gelu(drafts: Drafts, last: Draft) -> Draft | None:
    """x * 0.5 * (1 + erf(x / sqrt(2))), in any order."""
    if not is_one_of(last, ["Mul"]):
        return None
    for factor, rest in both_ways(last.inputs):
        inner = drafts.maker(rest, "Mul")
        for second, third in both_ways(inner.inputs) if inner is not None else ():
            for half, given, share in ((factor, second, third), (second, factor, third), (second, third, factor)):
                if drafts.is_number(half, 0.5) and _is_error_function(drafts, share, given):
                    return drafts.made(last, functional.gelu, [given])
    return None


def _is_error_function(drafts: Drafts, slot: int, given: int) -> bool:
    """Whether a slot is 1 + erf(given / sqrt(2))."""
    added = drafts.maker(slot, "Add")
    inner = None if added is None else drafts.other(added, 1.0)
    error = None if inner is None else drafts.maker(inner, "Erf")
    scaled = None if error is None else drafts.maker(error.inputs[0], "Mul", "Div")
    if scaled is None:
        return False
    if is_one_of(scaled, ["Div"]):
        return scaled.inputs[0] == given and drafts.is_number(scaled.inputs[1], math.sqrt(2))
    return drafts.other(scaled, math.sqrt(0.5)) == given


def _gated(drafts: Drafts, last: Draft) -> Draft | None:
    """x * sigmoid(x), and x * hardsigmoid(x) as hard swish has it."""
    if not is_one_of(last, ["Mul"]):
        return None
    for given, gate in both_ways(last.inputs):
        sigmoid = drafts.maker(gate, "Sigmoid", "HardSigmoid")
        if sigmoid is None or sigmoid.inputs[0] != given:
            continue
        if is_one_of(sigmoid, ["Sigmoid"]):
            return drafts.made(last, functional.silu, [given])
        slope, offset = attribute(sigmoid, "alpha", 0.2), attribute(sigmoid, "beta", 0.5)
        if math.isclose(slope, 1 / 6, rel_tol=CLOSE) and offset == 0.5:
            return drafts.made(last, functional.hardswish, [given])
    return None


def _layer_norm(drafts: Drafts, last: Draft) -> Draft | None:
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) * scale + bias over the last axis, as opsets before 17 write it."""
    if not is_one_of(last, ["Add"]):
        return None
    for rest, bias in both_ways(last.inputs):
        product = drafts.maker(rest, "Mul")
        for normed, scale in both_ways(product.inputs) if product is not None else ():
            found = _standardised(drafts, normed)
            weights = drafts.known(scale), drafts.known(bias)
            if found is None or any(weight is None or weight.ndim != 1 for weight in weights):
                continue
            given, epsilon = found

            def call(given: Tensor, scale: Tensor, bias: Tensor, epsilon: float = epsilon) -> Tensor:
                return functional.layer_norm(given, scale.shape, scale, bias, epsilon)

            return drafts.made(last, call, [given, scale, bias])
    return None


def _standardised(drafts: Drafts, slot: int) -> tuple[int, float] | None:
    """What a slot is the standardised form of, and the epsilon."""
    ratio = drafts.maker(slot, "Div")
    root = None if ratio is None else drafts.maker(ratio.inputs[1], "Sqrt")
    added = None if root is None else drafts.maker(root.inputs[0], "Add")
    if ratio is None or added is None:
        return None
    for variance, small in both_ways(added.inputs):
        epsilon, mean = drafts.number(small), drafts.maker(variance, "ReduceMean")
        if epsilon is None or mean is None or not _is_over_last(drafts, mean):
            continue
        centred = ratio.inputs[0]
        square = drafts.maker(mean.inputs[0], "Pow", "Mul")
        if square is None or square.inputs[0] != centred:
            continue
        if square.inputs[1] != centred and not (is_one_of(square, ["Pow"]) and drafts.is_number(square.inputs[1], 2)):
            continue
        difference = drafts.maker(centred, "Sub")
        own = None if difference is None else drafts.maker(difference.inputs[1], "ReduceMean")
        if difference is not None and own is not None and own.inputs[0] == difference.inputs[0]:
            return (difference.inputs[0], epsilon) if _is_over_last(drafts, own) else None
    return None


def _is_over_last(drafts: Drafts, mean: Draft) -> bool:
    axes = attribute(mean, "axes")
    if axes is None and len(mean.inputs) > 1:
        known = drafts.known(mean.inputs[1])
        axes = None if known is None else known.tolist()
    return axes is not None and list(axes) == [-1] and bool(attribute(mean, "keepdims", 1))


def _linear(drafts: Drafts, last: Draft) -> Draft | None:
    """x @ W + b with known W (in, out) and b (out,)."""
    if not is_one_of(last, ["Add"]):
        return None
    for rest, bias in both_ways(last.inputs):
        product, shift = drafts.maker(rest, "MatMul"), drafts.known(bias)
        weight = None if product is None else drafts.known(product.inputs[1])
        if product is None or weight is None or shift is None or not weight.is_floating_point():
            continue
        if weight.ndim == 2 and shift.shape == weight.shape[1:]:
            return drafts.made(last, _affine, [*product.inputs, bias])
    return None


def _affine(given: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.linear(given, weight.T, bias)


def _attention(drafts: Drafts, last: Draft) -> Draft | None:
    """softmax(q @ k + mask) @ v; ``k`` is turned already."""
    softmax = drafts.maker(last.inputs[0], "Softmax") if is_one_of(last, ["MatMul"]) else None
    if softmax is None or softmax.node is None:
        return None
    axis = softmax.node.integer("axis", -1 if softmax.node.opset >= 13 else 1)
    if axis not in (-1, 3):
        return None
    scores, mask = drafts.maker(softmax.inputs[0], "MatMul", "Add"), None
    if scores is not None and is_one_of(scores, ["Add"]):
        for rest, added in both_ways(scores.inputs):
            found = drafts.maker(rest, "MatMul")
            if found is not None and drafts.known(added) is not None:
                scores, mask = found, added
                break
    if scores is None or not is_one_of(scores, ["MatMul"]):
        return None
    query, key, scale = *scores.inputs, 1.0
    for _ in range(2):
        query, key, scale = _without_scale(drafts, query, key, scale)
    given = [query, key, last.inputs[1], *([] if mask is None else [mask])]
    return drafts.made(last, _attending(scale, axis), given)


def _without_scale(drafts: Drafts, query: int, key: int, scale: float) -> tuple[int, int, float]:
    """The factors of the scores before they are multiplied by a number."""
    for slot in (query, key):
        product = drafts.maker(slot, "Mul")
        for rest, number in both_ways(product.inputs) if product is not None else ():
            factor = drafts.number(number)
            if factor is not None:
                return (rest, key, scale * factor) if slot == query else (query, rest, scale * factor)
    return query, key, scale


def _attending(scale: float, axis: int) -> Callable[..., Any]:
    def call(query: Any, key: Any, value: Any, mask: Tensor | None = None) -> Any:
        query, key, value = (part.genuine() if isinstance(part, Quantised) else part for part in (query, key, value))
        if query.ndim == key.ndim == value.ndim == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2]:
            return functional.scaled_dot_product_attention(query, key.mT, value, mask, scale=scale)
        scores = (query @ key) * scale
        return torch.softmax(scores if mask is None else scores + mask, axis) @ value

    return call


PATTERNS = (_gelu, _gated, _layer_norm, _attention, _linear)
