"""What the tests of reports share: a hostile name, and real audits, small."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import purifier

HOSTILE = "<script>alert(1)</script>\"'&|\n](javascript:x)"
"""A name that must not become part of a page."""


@dataclass(frozen=True)
class NoConfig:
    pass


class Noisy(purifier.Purifier):
    """A random purifier: it adds noise."""

    Config, gradient = NoConfig, "exact"

    def draw(self, pixels: Tensor, generator: purifier.SampleGenerator) -> Tensor:
        return generator.normal(pixels.shape[1:], pixels)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels if noise is None else (pixels + 0.1 * noise).clamp(0, 1)


def audited(name: str, folder: Path, **options) -> purifier.AuditReport:
    settings = {"eps": [0.05, 0.1], "attacks": ["pgd:steps=3", "square:queries=20"], "probes": 6, **options}
    found = purifier.audit(purifier.guard("demo", name), "demo:20", out=folder, **settings)
    commanded = dataclasses.replace(found, command=["purifier", "audit", "--data", "demo:20"])
    commanded.save(folder)
    return commanded
