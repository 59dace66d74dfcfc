"""A few images of an audit, clean and attacked, that fell and that held; and on request all attacked images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from .arrays import Array

EXAMPLES_FILE, ADVERSARIAL_FILE = "examples.npz", "adversarial.npz"


@dataclass(frozen=True, eq=False)
class Examples:
    """M images under attacks on the audited model; pixels are float32 in [0, 1]."""

    rows: Array
    """Which row of the report attacked each image, (M,) int64; for images that held, the attack that came closest."""
    indices: Array
    """Their positions in the data, (M,) int64."""
    labels: Array
    """(M,) int64."""
    fell: Array
    """(M,) bool: wrong under that attack in at least half of the judgements. The others are right under every attack
    within the threat."""
    clean: Array
    """(M, C, H, W)."""
    adversarial: Array
    """(M, C, H, W)."""
    purified: Array
    """What the purifier makes of the adversarial images, of a random one the mean, (M, C, H, W); NaN without one."""
    answers: Array
    """The model's answers to the clean and to the adversarial images, (M, 2) int64; -1 for none."""
    confidences: Array
    """The softmax of these answers, (M, 2) float32."""
    rejected: Array
    """In which share of judgements the adversarial images are rejected, (M,); NaN if the model marks no images."""


def read_examples(arrays: Mapping[str, Array], rows: int) -> Examples:
    """Arrays as read from a file -> examples; raises ValueError or KeyError unless they fit a report of ``rows``."""
    names = [field.name for field in dataclasses.fields(Examples)]
    found = Examples(**{name: arrays[name] for name in names})
    if len({len(arrays[name]) for name in names}) != 1 or found.clean.shape != found.adversarial.shape:
        raise ValueError("examples of different lengths")
    if len(found.rows) and not 0 <= found.rows.min() <= found.rows.max() < rows:
        raise ValueError(f"examples of rows that a report of {rows} rows lacks")
    return found
