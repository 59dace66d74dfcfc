"""A linear classifier behind a detector with a linear score, where the best evasion is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import purifier
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.rejection.policy import Rejection
from purifier.seeding import SampleGenerator
from purifier.vocabulary import Route

COUNT = 40
WEIGHTS = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
PIXELS = 0.4 + 0.2 * torch.rand(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(2))
EPS = {"linf": 0.05, "l2": 0.25}


@dataclass(frozen=True)
class NoConfig:
    pass


class Sloped(purifier.Purifier):
    """Purifies nothing; its score is linear, so the lowest score is known."""

    Config, gradient = NoConfig, "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels if noise is None else (pixels + 0.02 * noise).clamp(0, 1)

    def score(self, pixels: Tensor) -> Tensor:
        return 1000 * ((pixels - 0.5) * self.slope()).flatten(1).sum(1)

    @staticmethod
    def slope() -> Tensor:
        """Partly opposed to the classifier: both aims pull on the same pixels."""
        return 0.5 * WEIGHTS[0] + WEIGHTS[1]


class Noisy(Sloped):
    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor:
        return generator.normal(pixels.shape[1:], pixels)


class Deaf(Sloped):
    def score(self, pixels: Tensor) -> Tensor:
        return super().score(pixels.detach())


class Fails(Sloped):
    """Its score is NaN for dark images."""

    def score(self, pixels: Tensor) -> Tensor:
        return torch.where(pixels.mean((1, 2, 3)) < 0.5, torch.nan, super().score(pixels))


class TwoClasses(nn.Module):
    """Linear: class 1 where w . (x - 0.5) > 0."""

    def forward(self, pixels: Tensor) -> Tensor:
        side = ((pixels - 0.5) * WEIGHTS[0]).flatten(1).sum(1)
        return torch.stack([-side, side], 1)


CLASSIFIER = TorchPixelClassifier(TwoClasses().eval(), Preprocessing())
LABELS = CLASSIFIER(PIXELS).argmax(1)


def run(
    spec: str,
    norm: str = "linf",
    *,
    filter_: type[purifier.Purifier] = Sloped,
    route: Route = "exact",
    seed: int = 0,
    batch: int = COUNT,
    labels: Tensor = LABELS,
    eps: float | None = None,
    eot: int = 1,
    rejection: Rejection | None = None,
) -> tuple[Tensor, Target]:
    threat, found = Threat(norm, EPS[norm] if eps is None else eps), []
    for start in range(0, COUNT, batch):
        indices = range(start, min(start + batch, COUNT))
        target = Target(
            CLASSIFIER, filter_(NoConfig()), route, SampleGenerator(seed + 1, indices), eot=eot, rejection=rejection
        )
        rows = slice(indices.start, indices.stop)
        generator = SampleGenerator(seed, indices)
        found.append(read_attack(spec).attack.perturb(target, PIXELS[rows], labels[rows], threat, generator))
    return torch.cat(found), target


def score(pixels: Tensor) -> Tensor:
    return Sloped(NoConfig()).score(pixels)


def fooled(pixels: Tensor) -> Tensor:
    return CLASSIFIER(pixels).argmax(1) != LABELS


def lowest_score(norm: str, eps: float) -> Tensor:
    """The lowest score of an image misclassified within the budget, (N,); NaN where none can be."""
    weight, slope = (part.flatten().double().numpy() for part in (WEIGHTS[0], Sloped.slope()))
    answers = []
    for image, label, clean in zip(PIXELS.flatten(1).double().numpy(), LABELS.tolist(), score(PIXELS), strict=True):
        away = weight * (1 - 2 * label)
        needed = -away @ (image - 0.5)
        if norm == "linf":
            solved = linprog(slope, A_ub=-away[None], b_ub=[-needed], bounds=(-eps, eps))
            answers.append(clean.item() + 1000 * solved.fun if solved.status == 0 else np.nan)
            continue
        # Follow the score's slope; if that does not cross the boundary, spend the rest of the budget along it.
        length = np.linalg.norm(away)
        across, free = needed / length, -eps * slope / np.linalg.norm(slope)
        if away @ free < needed:
            inside = slope - (slope @ away) / length**2 * away
            rest = np.sqrt(max(0.0, eps**2 - across**2))
            free = across * away / length - rest * inside / np.linalg.norm(inside)
        answers.append(clean.item() + 1000 * slope @ free if across < eps else np.nan)
    return torch.tensor(answers, dtype=torch.float64)
