"""What the attacks' tests share: trivial purifiers, classifiers with a known optimum, running a spec."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import purifier
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.rejection.policy import Rejection
from purifier.seeding import SampleGenerator
from purifier.vocabulary import Norm, Route

NEVER = Rejection(threshold=1e9)
"""A threshold that no score reaches, for attacks that evade one."""


@dataclass(frozen=True)
class NoConfig:
    pass


class Same(purifier.Purifier):
    Config, gradient = NoConfig, "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels


class Noisy(Same):
    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor:
        return generator.normal(pixels.shape[1:], pixels)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels if noise is None else (pixels + 0.1 * noise).clamp(0, 1)


def run(
    spec: str,
    module: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    filter_: type[purifier.Purifier] = Same,
    seed: int = 0,
    batch: int = 64,
    route: Route = "exact",
) -> Tensor:
    """The attack's images (N, C, H, W), made a batch at a time and not projected."""
    classifier = TorchPixelClassifier(module, Preprocessing())
    found = []
    for start in range(0, len(pixels), batch):
        indices = range(start, min(start + batch, len(pixels)))
        streams = SampleGenerator(seed + 1, indices)
        target = Target(classifier, filter_(NoConfig()), route, streams, rejection=NEVER)
        rows = slice(indices.start, indices.stop)
        found.append(
            read_attack(spec).attack.perturb(target, pixels[rows], labels[rows], threat, SampleGenerator(seed, indices))
        )
    return torch.cat(found)


class TwoClasses(nn.Module):
    """A linear classifier of two classes: the smallest change that flips an image is known."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def score(self, pixels: Tensor) -> Tensor:
        return (pixels * self.weight).flatten(1).sum(1) + self.bias

    def forward(self, pixels: Tensor) -> Tensor:
        score = self.score(pixels)
        return torch.stack([-score, score], 1)


def two_classes() -> tuple[TwoClasses, Tensor, Tensor, Tensor]:
    """The classifier, 400 images away from the box's walls, their labels and margins."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(1, 1, 8, 8, generator=generator)
    pixels = 0.4 + 0.2 * torch.rand(400, 1, 8, 8, generator=generator)
    linear = TwoClasses(weight, -0.5 * weight.sum().item())
    score = linear.score(pixels)
    return linear, pixels, (score > 0).long(), score.abs()


def dual_norm(weight: Tensor, norm: str) -> Tensor:
    """||w||_q with the dual q: |w.x + b| / ||w||_q is a linear classifier's distance (Moosavi-Dezfooli et al. 2016)."""
    return weight.abs().sum() if norm == "linf" else weight.norm() if norm == "l2" else weight.abs().max()


def linear(classes: int, norm: Norm, count: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear classifier, images far from the box's walls, their labels and their distances to another class."""
    if classes == 2:
        module, pixels, labels, score = two_classes()
        distance = score / dual_norm(module.weight, norm)
    else:
        generator = torch.Generator().manual_seed(5)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).requires_grad_(False)
        weight = torch.randn(classes, 64, generator=generator)
        module[1].weight.copy_(weight)
        module[1].bias.copy_(-0.5 * weight.sum(1))
        pixels = 0.4 + 0.2 * torch.rand(400, 1, 8, 8, generator=generator)
        logits = module(pixels)
        labels = logits.argmax(1)
        normals = weight - weight[labels].unsqueeze(1)
        slopes = torch.stack([torch.stack([dual_norm(normal, norm) for normal in rows]) for rows in normals])
        gaps = (logits.gather(1, labels.unsqueeze(1)) - logits) / slopes
        distance = gaps.scatter(1, labels.unsqueeze(1), torch.inf).amin(1)
    # One pixel alone can move by 0.4 at least; a larger l1 distance would meet the box.
    inside = (distance < 0.35).nonzero().squeeze(1)[:count]
    return module, pixels[inside], labels[inside], distance[inside]
