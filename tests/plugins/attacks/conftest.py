"""Shared by the attacks' tests: the small classifier of real images."""

from __future__ import annotations

import pytest
from torch import nn

from nets import trained


@pytest.fixture(scope="session")
def net() -> nn.Module:
    return trained("net")
