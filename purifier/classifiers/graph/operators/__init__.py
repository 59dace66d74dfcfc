"""The operators, a file for each family; each registers what it computes in ``table``."""

from __future__ import annotations

import importlib

FAMILIES = (
    *("activations", "arithmetic", "attention", "casts", "control_flow", "convolution", "elementwise", "indexing"),
    *("linear", "logic", "microsoft", "microsoft_quantised", "normalisation", "padding", "pooling", "quantised"),
    *("randomness", "recurrent", "reductions", "regions", "resizing", "sampling", "scattering", "selection"),
    *("sequences", "shapes", "signal", "slicing"),
)


def load() -> None:
    """Import every family."""
    for family in FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
