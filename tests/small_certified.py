"""A small certified purifier, trained in a few seconds for the classifier `net`, once a process."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import purifier
from nets import trained
from purifier.plugins.purifiers.certified import Certified, CertifiedConfig

SMALL: dict[str, Any] = {"eps": 0.02, "channels": 4, "hidden": 16}


def small_certified() -> Certified:
    """Certified on more than half of `demo:300` at linf 0.02; a new object each time."""
    found = purifier.load(_checkpoint())
    assert isinstance(found, Certified)
    return found


@lru_cache
def _checkpoint() -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = Path(tempfile.mkdtemp(prefix="purifier-certified-"), "small.safetensors")
    settings: dict[str, Any] = {"epochs": 12, "batch_size": 25, "ema": 0.9}
    purifier.train(
        "certified", "demo:300", out, classifier=trained("net"), recipe="certified:ramp=0.3", config=SMALL, **settings
    )
    torch.set_num_threads(threads)
    return out


def random_certified(shape: tuple[int, int, int], *, seed: int = 0, **options: Any) -> Certified:
    """An untrained one, with batch normalisation that does something."""
    torch.manual_seed(seed)
    made = Certified(CertifiedConfig(shape, **options))
    for layer in (*made.maps, made.hidden):
        torch.nn.init.normal_(layer.mean, std=0.1)
        torch.nn.init.uniform_(layer.variance, 0.5, 2.0)
        torch.nn.init.normal_(layer.scale, mean=1.0, std=0.5)
        torch.nn.init.normal_(layer.bias, std=0.2)
    return made.eval()
