"""What became of each image: one line of arrays for each row of a report, in ``results.npz``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .arrays import Array

RESULTS_FILE = "results.npz"


@dataclass(frozen=True, eq=False)
class Results:
    """The results of N images in the R rows of a report, in the report's order; shares are over judgements.

    In rows of an attack that failed everything is NaN, and -1 in ``answers``. In a sequence, images that an attack did
    not get keep their clean result in all but ``counted``.
    """

    rows: Array
    """What each row is, (R,) text: model, attack, route, threat and draws."""
    labels: Array
    """(N,) int64."""
    counted: Array
    """(R, N) float64: the share of judgements that count for the row's ``result``, whose mean they are. In a sequence
    the smallest so far."""
    own: Array
    """(R, N) float64: the same under this attack alone, and whether or not the image was right when clean."""
    plain: Array
    """(R, N) float64: the share of judgements in which the image would be right if nothing were rejected."""
    rejected: Array
    """(R, N) float64: the share in which it is rejected; NaN for models that mark no images."""
    scores: Array
    """(R, N) float32: the purifier's score; NaN for the undefended classifier."""
    attacked: Array
    """(R, N) bool: whether the attack was given the image."""
    answers: Array
    """(R, N) int64: the class answered in the first judgement; -1 for none."""
    margins: Array
    """(R, N) float32: in the first judgement, the true class's logit minus the largest other; NaN without an answer."""
    confidences: Array
    """(R, N) float32: in the first judgement, the softmax of the class answered; NaN without an answer."""

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.labels)

    def worst(self, rows: Sequence[int]) -> Array:
        """The smallest ``counted`` of each image in these rows, (N,); rows of failed attacks are left out."""
        chosen = self.counted[list(rows)]
        ran = ~np.isnan(chosen).any(1)
        if not ran.any():
            return np.full(self.count, np.nan)
        return np.asarray(chosen[ran].min(0))


def read_results(arrays: Mapping[str, Array], rows: int, images: int) -> Results:
    """Arrays as read from a file -> results; raises ValueError or KeyError unless they fit a report's size."""
    names = [field.name for field in dataclasses.fields(Results)]
    found = Results(**{name: arrays[name] for name in names})
    shapes = {"rows": (rows,), "labels": (images,)}
    for name in names:
        expected = shapes.get(name, (rows, images))
        if arrays[name].shape != expected:
            raise ValueError(f"{name}: expected shape {expected}, got {arrays[name].shape}")
    return found
