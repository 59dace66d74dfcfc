"""Budgets that no training can hold."""

from __future__ import annotations

from ..attacking.threat import Threat
from ..errors import ConfigError

LARGEST_LINF = 0.5
"""Within this, every image can be turned into the same grey one."""


def check_trainable(threat: Threat, recipe: str) -> None:
    """Raise ``ConfigError`` for a budget within which nothing is left of an image."""
    if threat.norm == "linf" and threat.eps >= LARGEST_LINF:
        raise ConfigError(
            f"{recipe}: eps={threat.eps:g} cannot be trained for: within {LARGEST_LINF:g} in linf every image can "
            "become plain grey; give eps in pixel units, where pixels are in [0, 1], such as 8/255"
        )
