"""What the tests of query attacks share: targets that count, classifiers that give labels only, fresh judgements."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attack_helpers import NEVER, NoConfig, Noisy, Same
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.contracts.purifier import Purifier
from purifier.data.pixels import Preprocessing
from purifier.seeding import SampleGenerator
from purifier.vocabulary import Route


def target_of(net: nn.Module, count: int, *, filter_: type[Purifier] = Same, route: Route = "none") -> Target:
    """A target for ``count`` images with the streams that ``run`` gives them."""
    classifier = TorchPixelClassifier(net, Preprocessing())
    return Target(classifier, filter_(NoConfig()), route, SampleGenerator(1, range(count)), rejection=NEVER)


class LabelsOnly(nn.Module):
    """Answers with the label alone: its logits are 1 for it and 0 for the others."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits = self.net(images)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits)


def standing(net: nn.Module, found: Tensor, labels: Tensor, *, draws: int = 5) -> float:
    """Share of images that the guard of ``Noisy`` and ``net`` gets right, over draws that no attack has seen."""
    noises = [torch.randn(found.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(draws)]
    judged = [net(Noisy(NoConfig()).purify(found, noise)).argmax(1) == labels for noise in noises]
    return torch.stack(judged).double().mean().item()


def in_other_order(
    spec: str, net: nn.Module, pixels: Tensor, labels: Tensor, threat: Threat, *, batch: int, **options: object
) -> Tensor:
    """What the attack finds for the images in reversed order, ``batch`` at a time, put back into theirs."""
    back = torch.arange(len(labels) - 1, -1, -1)
    target = target_of(net, len(labels), **options)  # type: ignore[arg-type]
    attack = read_attack(spec).attack
    found = [
        attack.perturb(target.select(rows), pixels[rows], labels[rows], threat, SampleGenerator(0, rows.tolist()))
        for rows in back.split(batch)
    ]
    return torch.cat(found)[back]


def same_share(one: Tensor, other: Tensor) -> float:
    """The share of values that agree to 1e-5."""
    return ((one - other).abs() < 1e-5).double().mean().item()
