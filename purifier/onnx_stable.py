"""Operators whose own translation to ONNX overflows where torch's kernel does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op

NONE, MEAN = 0, 1
"""torch's numbers of the reductions ``none`` and ``mean``; the third is ``sum``."""


def binary_cross_entropy_with_logits(
    logits: Any, target: Any, weight: Any = None, pos_weight: Any = None, reduction: int = MEAN
) -> Any:
    """softplus(-x) (1 + (p - 1) t) + (1 - t) x; the exporter's log(1 - sigmoid(x)) is -inf above x = 17."""
    softplus = op.Softplus(op.Neg(logits))
    loss = op.Add(op.Sub(logits, op.Mul(target, logits)), softplus)
    if pos_weight is not None:
        loss = op.Add(loss, op.Mul(op.Sub(op.Mul(pos_weight, target), target), softplus))
    if weight is not None:
        loss = op.Mul(loss, weight)
    if reduction == NONE:
        return loss
    return op.ReduceMean(loss, keepdims=0) if reduction == MEAN else op.ReduceSum(loss, keepdims=0)


def log_sigmoid(values: Any) -> Any:
    """-softplus(-x); the exporter's log(sigmoid(x)) is -inf below x = -88."""
    return op.Neg(op.Softplus(op.Neg(values)))


aten = torch.ops.aten
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    aten.binary_cross_entropy_with_logits.default: binary_cross_entropy_with_logits,
    aten.log_sigmoid.default: log_sigmoid,
}
"""For ``torch.onnx.export(custom_translation_table=...)``."""
