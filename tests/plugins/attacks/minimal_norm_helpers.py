"""What the tests of minimal-norm attacks share: a linear classifier, and checks that all must pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attack_helpers import Noisy, linear, run
from purifier import Threat
from purifier.vocabulary import Norm

EPS: dict[Norm, float] = {"linf": 0.03, "l2": 0.6, "l1": 6.0}
"""Budgets within which the small classifier loses some of the images."""


def near_but_unlikely() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear classifier whose second likeliest class is farther than its third: as ``linear``, for l2."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False)
    module[1].weight.copy_(torch.tensor([0.0, -1.0, 3.0]).unsqueeze(1).expand(3, 64))
    module[1].bias.copy_(torch.tensor([0.0, 31.0, -97.5]))
    pixels = 0.49 + 0.02 * torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    logits = module(pixels)
    assert (logits.argsort(1, descending=True) == torch.tensor([0, 1, 2])).all()
    return module, pixels, torch.zeros(8, dtype=torch.long), -logits[:, 2] / (3 * 8)


def check_nearest(spec: str, classes: int, norm: Norm, *, within: float = 1.25, count: int = 60) -> None:
    """Each image is misclassified, within 1.25 times the smallest distance there is and never below it."""
    module, pixels, labels, distance = linear(classes, norm, count)
    threat = Threat(norm, 0.01)
    found = run(spec, module, pixels, labels, threat)
    assert (module(found).argmax(1) != labels).all()
    reached = threat.distance(found, pixels)
    assert (reached >= distance - 1e-5).all()
    assert (reached <= within * distance + 1e-5).all(), (reached / distance).max()


def check_oblivious(spec: str, norm: Norm, net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Without the guard no image just over the edge comes back: the margins in the budget are larger."""
    few, threat = (images[0][:12], images[1][:12]), Threat(norm, 2 * EPS[norm])
    near, sure = (run(spec, net, *few, threat, route=route) for route in ("exact", "oblivious"))

    def margins(found: Tensor) -> Tensor:
        logits = net(threat.project(found, few[0]))
        right = logits.gather(1, few[1].unsqueeze(1))
        return (logits.scatter(1, few[1].unsqueeze(1), -torch.inf).amax(1, keepdim=True) - right).squeeze(1)

    assert (margins(sure) >= margins(near) - 1e-3).all()
    fooled = margins(near) > 0
    assert margins(sure)[fooled].mean() > margins(near)[fooled].mean() + 0.1
    # The guard may be right about images that the classifier gets wrong: they go on as well.
    wrong = net(few[0]).argmax(1).add(1) % 10
    pushed = run(spec, net, few[0], wrong, threat, route="oblivious")
    assert (threat.distance(threat.project(pushed, few[0]), few[0]) > 0.5 * threat.eps).all()
    gained = nn.functional.cross_entropy(net(pushed), wrong) - nn.functional.cross_entropy(net(few[0]), wrong)
    assert gained > 0.5
    assert torch.equal(run(spec, net, few[0], wrong, threat), few[0])


def check_edge(spec: str, norm: Norm, net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """On the route oblivious images that can be fooled come back from the budget's edge."""
    few, threat = (images[0][:16], images[1][:16]), Threat(norm, 2 * EPS[norm])
    found = run(spec, net, *few, threat, route="oblivious")
    fooled = net(threat.project(found, few[0])).argmax(1) != few[1]
    assert fooled.sum() > 8
    away = threat.distance(found, few[0])[fooled]
    assert (away <= threat.eps + 1e-6).all()
    # The box cuts some pixels short, which shortens l2 distances.
    assert (away >= threat.eps * (0.99 if norm == "linf" else 0.8)).all(), away / threat.eps


class NanAtTimes(nn.Module):
    """A classifier of whose gradients the first and each fifth after it is NaN in places, as of a root at 0."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.gradients = net, 0

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.requires_grad:
            self.gradients += 1
            if self.gradients % 5 == 1:
                pixels.register_hook(lambda gradient: gradient.masked_fill(pixels > 0.5, torch.nan))
        return self.net(pixels)


def check_nan(spec: str, norm: Norm, net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """A NaN gradient does not spoil the steps after it."""
    pixels, labels = images[0][:12], net(images[0][:12]).argmax(1)
    threat, spoilt = Threat(norm, 3 * EPS[norm]), NanAtTimes(net)
    found = threat.project(run(spec, spoilt, pixels, labels, threat), pixels)
    assert spoilt.gradients > 2
    assert (net(found).argmax(1) != labels).sum() > 8


def distances(spec: str, norm: Norm, net: nn.Module, images: tuple[Tensor, Tensor]) -> Tensor:
    """How far each image's misclassified one is, infinite where there is none."""
    pixels, labels = images
    threat = Threat(norm, 0.001)
    found = run(spec, net, pixels, labels, threat)
    fooled = net(found).argmax(1) != labels
    return torch.where(fooled, threat.distance(found, pixels), torch.inf)


def check_random(spec: str, norm: Norm, net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Under a random purifier the images found stay misclassified under noise that the attack has not seen."""
    pixels, labels = (part[:24] for part in images)
    threat = Threat(norm, 1.5 * EPS[norm])
    found = threat.project(run(spec, net, pixels, labels, threat, filter_=Noisy), pixels)

    def right(images: Tensor) -> float:
        generator = torch.Generator().manual_seed(7)
        noisy = [(images + 0.1 * torch.randn(pixels.shape, generator=generator)).clamp(0, 1) for _ in range(4)]
        return torch.stack([net(one).argmax(1) == labels for one in noisy]).double().mean().item()

    assert right(found) < right(pixels) - 0.25
