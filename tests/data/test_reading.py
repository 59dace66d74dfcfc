"""What can be read of tensors, and what is left unread where torch has no values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from purifier.data.reading import bounds_of, sizes_of


def test_bounds_are_the_lowest_and_highest_value() -> None:
    assert bounds_of(torch.tensor([[0.25, -1.0], [3.0, 0.5]], requires_grad=True)) == (-1, 3)
    assert all(math.isnan(bound) for bound in bounds_of(torch.tensor([0.0, torch.nan])) or ())
    assert bounds_of(torch.zeros(0, 3)) is None


def test_there_are_no_bounds_where_values_cannot_be_read() -> None:
    found: list[tuple[float, float] | None] = []

    def keep(values: Tensor) -> Tensor:
        found.append(bounds_of(values))
        return values.sum()

    torch.func.vmap(keep)(torch.rand(2, 3))
    torch.func.vmap(torch.func.grad(keep))(torch.rand(2, 3))
    keep(torch.rand(3, device="meta"))
    with FakeTensorMode():
        keep(torch.rand(3))
    make_fx(keep, tracing_mode="symbolic")(torch.rand(3))
    assert found == [None] * 5
    torch.func.grad(keep)(torch.tensor([1.0, 2.0]))
    assert found[-1] == (1, 2)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_sizes_are_numbers_but_for_those_that_are_free() -> None:
    found: list[tuple[int | None, ...]] = []

    def keep(values: Tensor) -> Tensor:
        found.append(sizes_of(values))
        return values + 1

    keep(torch.zeros(2, 3, 4))
    torch.jit.trace(keep, torch.zeros(2, 3, 4))
    assert found[:2] == [(2, 3, 4), (None, 3, 4)]
