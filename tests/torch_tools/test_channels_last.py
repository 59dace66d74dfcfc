"""Modules held in channels-last layout: the same answers, and their own tensors back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

import purifier
from channels_last_helpers import PIXELS, Dead, Looking, NoConfig, Viewing, own_tensors, said, unchanged
from nets import trained
from purifier.attacking.attack import Attack
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.contracts.purifier import Purifier
from purifier.seeding import SampleGenerator
from purifier.torch_tools.channels_last import channels_last


class Viewed(Purifier):
    """Purifies in any layout, but its surrogate fails in channels-last."""

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
    """Changes nothing, and records the layouts it finds."""

    needs: ClassVar[Literal["scores"]] = "scores"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    seen: list[bool] = field(default_factory=list)

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        self.seen.extend(_is_last(module) for module in (target.classifier, target.purifier))
        return pixels


def _wide(module: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in module.parameters() if weight.ndim == 4]


def _is_last(module: nn.Module) -> bool:
    return all(weight.is_contiguous(memory_format=torch.channels_last) for weight in _wide(module))


@pytest.mark.parametrize("module", [trained("net"), purifier.load("demo"), purifier.load("demo-plain")])
def test_convolutions_are_channels_last_and_answers_stay_the_same(module: nn.Module) -> None:
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
def test_modules_that_cannot_be_converted_stay_unchanged(module: nn.Module) -> None:
    module.eval()
    own = own_tensors(module)
    with torch.no_grad():
        before = module(PIXELS)
        with channels_last(module, said(module), PIXELS) as used:
            assert not used and unchanged(module, own)
            assert torch.equal(module(PIXELS), before)


def test_weights_are_restored_after_an_error() -> None:
    net = trained("net").eval()
    own = own_tensors(net)
    with pytest.raises(KeyError), channels_last(net, said(net), PIXELS):
        raise KeyError
    assert unchanged(net, own)


def test_an_audit_converts_both_modules_and_restores_them() -> None:
    net, vae, watching = trained("net").eval(), purifier.load("demo"), Watching()
    own = own_tensors(net), own_tensors(vae)
    purifier.audit(purifier.guard(net, vae), "demo:4", attacks=[watching], routes=["none"])
    assert len(watching.seen) >= 2 and all(watching.seen)
    assert unchanged(net, own[0]) and unchanged(vae, own[1])
