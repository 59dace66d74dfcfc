"""The small robust VAE: how it is trained, and its checkpoint; the yardstick was trained for as long as it.

Its reports, and figures measured on a GPU, were made when it was the shipped ``demo``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from figures import RESULTS

CHECKPOINT = RESULTS / "robust" / "small.safetensors"
TRAINING: Mapping[str, Any] = {
    "config": {"channels": 16, "depth": 2, "latent": 16, "spatial": True, "blocks": 4},
    "recipe": "robust:eps=0.1",
    "epochs": 28,
}
