"""Products of matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..node import Node
from ..table import Call, operator, simple


def matmul(first: Tensor, second: Tensor) -> Tensor:
    """Matrix products; integers, for which torch has none, exactly."""
    if first.is_floating_point():
        return first @ second
    return (first.double() @ second.double()).to(torch.int64).to(first.dtype)


simple("MatMul", matmul)


@operator("Gemm")
def gemm(node: Node) -> Call:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    first_turned, second_turned = bool(node.integer("transA")), bool(node.integer("transB"))

    def run(first: Tensor, second: Tensor, added: Tensor | None = None) -> Tensor:
        found = matmul(first.T if first_turned else first, second.T if second_turned else second)
        found = found if alpha == 1 else (found * alpha).to(first.dtype)
        if added is None:
            return found
        return found + (added if beta == 1 else (added * beta).to(first.dtype))

    def linear(first: Tensor, second: Tensor, added: Tensor | None = None) -> Tensor:
        """The usual case, in one call of torch."""
        fits = (
            added is None
            or added.shape == second.shape[: 1 if second_turned else 0]
            or (not second_turned and added.shape == second.shape[1:])
        )
        if not fits or not first.is_floating_point():
            return run(first, second, added)
        return functional.linear(first, second if second_turned else second.T, added)

    return linear if alpha == beta == 1 and not first_turned else run


@operator("Einsum", since=12)
def einsum(node: Node) -> Call:
    equation = node.text("equation")

    def run(*given: Tensor) -> Tensor:
        if given[0].is_floating_point():
            return torch.einsum(equation, *given)
        return torch.einsum(equation, *[value.double() for value in given]).to(given[0].dtype)

    return run


def _determinant(given: Tensor) -> Any:
    return torch.linalg.det(given)


simple("Det", _determinant)
