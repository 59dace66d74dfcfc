"""Modules held in channels-last layout: the same answers, and their own tensors afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

import purifier
from nets import trained
from purifier.attacking.attack import Attack
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.auditing.preflight import everything_asked
from purifier.contracts.purifier import Purifier
from purifier.data.loading import load_data
from purifier.seeding import SampleGenerator
from purifier.torch_tools.channels_last import Ask, channels_last


@dataclass(frozen=True)
class NoConfig:
    """Nothing to choose."""


class Viewing(nn.Module):
    """What many classifiers do: ``view`` where channels-last strides do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4 * 26 * 26, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        logits: Tensor = self.last(features.view(len(features), -1))
        return logits


class Looking(nn.Module):
    """Answers by how its features lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 10, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        return features.mean((2, 3)) * features.stride(1)


class Dead(nn.Conv2d):
    """Fails as soon as a gradient is asked for."""

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            raise ValueError("no gradients here")
        return super().forward(images).mean((2, 3))


class Viewed(Purifier):
    """Purifies in any layout, and cannot be followed by BPDA in this one."""

    Config = NoConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"

    def __init__(self, config: NoConfig) -> None:
        super().__init__(config)
        self.first = nn.Conv2d(1, 4, 3, padding=1)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.first(pixels).mean(1, keepdim=True).sigmoid()

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.first(pixels).view(len(pixels), 4, -1).mean(1).view_as(pixels)


@dataclass(frozen=True)
class Watching(Attack):
    """Changes nothing, and notes which layouts it finds."""

    needs: ClassVar[Literal["scores"]] = "scores"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    seen: list[bool] = field(default_factory=list)

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        self.seen.extend(_is_last(module) for module in (target.classifier, target.purifier))
        return pixels


PIXELS = load_data("demo:2").batch(range(2))[0]


def _wide(module: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in module.parameters() if weight.ndim == 4]


def _is_last(module: nn.Module) -> bool:
    return all(weight.is_contiguous(memory_format=torch.channels_last) for weight in _wide(module))


def own_tensors(module: nn.Module) -> list[tuple[int, tuple[int, ...], Tensor]]:
    return [(weight.data_ptr(), weight.stride(), weight.detach().clone()) for weight in module.parameters()]


def unchanged(module: nn.Module, own: list[tuple[int, tuple[int, ...], Tensor]]) -> bool:
    pairs = zip(own_tensors(module), own, strict=True)
    return all(new[:2] == old[:2] and torch.equal(new[2], old[2]) for new, old in pairs)


def said(module: nn.Module) -> Ask:
    return everything_asked(module) if isinstance(module, Purifier) else lambda pixels: [module(pixels)]


@pytest.mark.parametrize("module", [trained("net"), purifier.load("demo"), purifier.load("demo-plain")])
def test_convolutions_are_channels_last_meanwhile_and_answer_alike(module: nn.Module) -> None:
    module.eval()
    own, ask = own_tensors(module), said(module)
    assert not _is_last(module)
    with torch.no_grad():
        before = ask(PIXELS)
    with channels_last(module, ask, PIXELS) as used, torch.no_grad():
        assert used and _is_last(module)
        for new, old in zip(ask(PIXELS), before, strict=True):
            torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)
    assert unchanged(module, own)


@pytest.mark.parametrize(
    "module",
    [
        Viewing(),
        Looking(),
        Dead(1, 10, 3),
        Viewed(NoConfig()),
        nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
        purifier.load("blur"),
    ],
)
def test_what_cannot_take_it_stays_as_it_is(module: nn.Module) -> None:
    module.eval()
    own = own_tensors(module)
    with torch.no_grad():
        before = module(PIXELS)
        with channels_last(module, said(module), PIXELS) as used:
            assert not used and unchanged(module, own)
            assert torch.equal(module(PIXELS), before)


def test_weights_come_back_when_what_is_inside_fails() -> None:
    net = trained("net").eval()
    own = own_tensors(net)
    with pytest.raises(KeyError), channels_last(net, said(net), PIXELS):
        raise KeyError
    assert unchanged(net, own)


def test_an_audit_holds_both_and_gives_them_back() -> None:
    net, vae, watching = trained("net").eval(), purifier.load("demo"), Watching()
    own = own_tensors(net), own_tensors(vae)
    purifier.audit(purifier.guard(net, vae), "demo:4", attacks=[watching], routes=["none"])
    assert len(watching.seen) >= 2 and all(watching.seen)
    assert unchanged(net, own[0]) and unchanged(vae, own[1])
