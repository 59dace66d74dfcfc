"""The certificates of a set of images, as a file and as shares of images."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..atomic import atomic_write
from ..auditing.report_json import CERTIFICATES as FILE_NAME
from ..auditing.statistics import Rate, rate
from ..auditing.subject import NO_ANSWER
from ..errors import FileError
from ..vocabulary import Norm

SCHEMA = 1
STEPS = 5
"""The table has radii up to the largest one in about so many steps."""


@dataclass(frozen=True)
class Certificates:
    """What was certified for each image, and of what.

    No image within ``radii[i]`` of image i gets another answer than ``answers[i]``: with the method ``bounds`` from the
    guard itself, and images at that distance included; with ``smoothing`` from the smoothed model, and with confidence
    1 - alpha for each certificate. Fields of smoothing are None for bounds.
    """

    created: str
    versions: Mapping[str, str]
    model: Literal["guarded", "undefended"]
    """Whether the guard was certified, or a classifier alone."""
    classifier: Mapping[str, Any]
    purifier: Mapping[str, Any] | None
    on_reject: str | None
    data: Mapping[str, Any]
    """Name, number and SHA-256 of the images, as in an audit's report."""
    method: Literal["smoothing", "bounds"]
    norm: Norm
    seed: int
    device: str
    largest_radius: float
    """What some image has; with smoothing to no fixed radius, what an image gets on whose copies all answers agree."""
    notes: Sequence[str]
    labels: Sequence[int]
    answers: Sequence[int]
    """The class of each image; -1 where there is none, because the smoothed model abstains."""
    radii: Sequence[float]
    """In pixel units; 0 where nothing is certified."""
    seconds: float
    sigma: float | None = None
    samples: int | None = None
    first: int | None = None
    alpha: float | None = None
    counts: Sequence[int] | None = None
    """How many of the samples had the class of each image."""
    asked: Sequence[int] | None = None
    """How many samples of each image were taken; None in certificates made before it could be fewer than all."""
    budgets: Sequence[float] = ()
    """Radii that were asked for; with smoothing, sampling stopped where it was clear whether this one is certified."""
    command: Sequence[str] | None = None
    schema: int = SCHEMA

    def certified(self, radius: float) -> Rate:
        """The share of images whose answer is right, and certified for changes of this size.

        At radius 0 that is the accuracy: of the guard, or of the smoothed model, where an image on which it abstains is
        not right.
        """
        within = operator.ge if self.method == "bounds" else operator.gt
        right = (answer == label and within(certified, radius) for label, answer, certified in self._each)
        return rate(sum(right), self._count)

    @property
    def how(self) -> str:
        """What they come from, in words."""
        if self.sigma is None or self.alpha is None:
            return "proven by bounds"
        samples = f"{self.samples} samples"
        if self.budgets:
            samples = f"up to {samples}, until it is clear whether {self.budgets[0]:g} is certified"
        return f"noise of standard deviation {self.sigma:g}, {samples}, confidence {1 - self.alpha:g} each"

    @property
    def abstained(self) -> Rate:
        """The share of images that get no answer."""
        return rate(sum(answer == NO_ANSWER for answer in self.answers), self._count)

    @property
    def mean_radius(self) -> float:
        """The average certified radius, where a wrong answer counts as 0 (Zhai et al. 2020, "MACER")."""
        return sum(radius for label, answer, radius in self._each if answer == label) / self._count

    def steps(self) -> list[float]:
        """The radii asked for, after 0; without any, round ones."""
        return sorted({0.0, *self.budgets}) if self.budgets else self.round_radii()

    def round_radii(self) -> list[float]:
        """Round radii from 0 to below the largest."""
        if not self.largest_radius:
            return [0.0]
        rough = self.largest_radius / STEPS
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough)
        return [round(step * place, 12) for place in range(STEPS + 1) if step * place < self.largest_radius]

    def save(self, folder: str | Path) -> Path:
        """Write ``certificates.json`` atomically; return its path."""
        content = json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)
        return atomic_write(Path(folder) / FILE_NAME, content + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Certificates:
        """Read a file, or that in a folder.

        Raises
        ------
        FileError
            It is missing, or holds no certificates of this version.
        """
        path = Path(path, FILE_NAME) if Path(path).is_dir() else Path(path)
        advice = "make it with `purifier certify --out`"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise FileError(f"cannot read {path}: {error.strerror or error}; {advice}", path) from error
        except (ValueError, RecursionError) as error:
            raise FileError(f"{path} is not JSON ({error}); {advice}", path) from error
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            got = found.get("schema") if isinstance(found, dict) else None
            raise FileError(f"{path}: expected certificates of schema {SCHEMA}, got {got!r}; {advice}", path)
        try:
            made = cls(**{**found, "budgets": tuple(found.get("budgets", ()))})
            others = (made.labels if each is None else each for each in (made.counts, made.asked))
            lengths = {len(each) for each in (made.labels, made.answers, made.radii, *others)}
        except TypeError as error:
            raise FileError(f"{path} does not hold whole certificates ({error}); {advice}", path) from error
        if not made._is_plausible():
            raise FileError(f"{path} holds certificates that cannot be, such as a negative radius; {advice}", path)
        if lengths != {made.data.get("count")}:
            raise FileError(f"{path} does not have one certificate for each image; {advice}", path)
        return made

    def _is_plausible(self) -> bool:
        """Whether the values are of the kinds, and in the ranges, that certificates have."""
        known = self.method in ("smoothing", "bounds") and self.norm in get_args(Norm)
        radii = (*self.radii, *self.budgets, self.largest_radius)
        classes = all(type(value) is int and value >= NO_ANSWER for value in (*self.labels, *self.answers))
        numbers = all(isinstance(value, int | float) and 0 <= value < math.inf for value in radii)
        smoothed = (self.sigma, self.samples, self.first, self.alpha, self.counts)
        return known and classes and numbers and (self.method == "bounds" or None not in smoothed)

    @property
    def right(self) -> str:
        """What an image is whose answer counts: in agreement with the classifier if there are no labels."""
        return "in agreement with the undefended classifier" if "labels" in self.data else "right"

    @property
    def _count(self) -> int:
        return len(self.labels)

    @property
    def _each(self) -> list[tuple[int, int, float]]:
        return list(zip(self.labels, self.answers, self.radii, strict=True))
