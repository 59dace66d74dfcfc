"""The value of ``--fail-under``."""

from __future__ import annotations

from ..auditing.gates import ROBUST, Gate
from ..auditing.report import check_gate
from ..errors import ConfigError


def read_gate(text: str) -> Gate:
    """``0.6`` -> the worst case; ``clean=0.85``, ``pgd:steps=20=0.65`` -> what is named."""
    what, equals, share = text.rpartition("=")
    try:
        gate = Gate(what if equals else ROBUST, float(share))
    except ValueError:
        raise ConfigError(
            "--fail-under: expected a share of images in [0, 1] such as 0.6, or NAME=SHARE such as clean=0.85, got "
            f"{text!r}"
        ) from None
    check_gate(gate.least, "--fail-under")
    return gate
