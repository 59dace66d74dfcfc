"""What the shell completes: names of plugins and presets, without importing any."""

from __future__ import annotations

from ..auditing.presets import PRESETS
from ..contracts.registry import installed

SHIPPED = ("colour-32", "demo", "demo-certified", "demo-plain")
"""PURIFIER specs that name a checkpoint of the package, as ``contracts.checkpoint`` does, which needs torch."""


def attack_names(incomplete: str) -> list[str]:
    """Installed attacks whose names begin so; and ``none``, for clean images only."""
    return _beginning(incomplete, [*(entry.name for entry in installed("purifier.attacks")), "none"])


def purifier_names(incomplete: str) -> list[str]:
    """Installed purifiers and shipped checkpoints whose names begin so; and ``none``, for the classifier alone."""
    return _beginning(incomplete, [*(entry.name for entry in installed("purifier.purifiers")), *SHIPPED, "none"])


def preset_names(incomplete: str) -> list[str]:
    """Presets whose names begin so."""
    return _beginning(incomplete, list(PRESETS))


def _beginning(incomplete: str, names: list[str]) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})
