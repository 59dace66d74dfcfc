"""Copies of modules that have seen nothing yet."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from ..foreign_code import Attempt

M = TypeVar("M", bound=nn.Module)


def unused_copy(module: M) -> M:
    """A copy of a module with buffers and attributes of its own, which shares the weights.

    What the copy remembers of its inputs, the module does not know, and the other way round. A module that cannot be
    copied is returned itself.
    """
    shared = {id(weight): weight for weight in module.parameters()}
    with Attempt() as attempt:
        return copy.deepcopy(module, shared)
    assert attempt.error is not None
    return module
