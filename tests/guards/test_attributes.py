"""A guard has its classifier's attributes and methods, none of which answers past the purifier by accident."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import purifier
from purifier.errors import PurifierError, UnguardedError

ROUNDED = "bit-depth:bits=1"
PIXELS = torch.rand((5, 1, 28, 28), generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    """A classifier with the attributes and methods that those of timm and Hugging Face have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.blocks = nn.Flatten(), nn.ModuleList([nn.Linear(784, 16), nn.ReLU()])
        self.tail, self.fc = nn.Sequential(nn.Identity(), nn.Dropout(0.5)), nn.Linear(16, 10)
        self.skipped = self.register_module("none", None)
        self.config, self.num_classes, self.score = {"num_labels": 10}, 10, "the classifier's"

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        for block in (self.stem, *self.blocks, self.tail, self.fc):
            x = block(x)
        return x

    @property
    def device(self) -> torch.device:
        return self.fc.weight.device

    def predict(self, x: Tensor) -> Tensor:
        return self(x).argmax(1)

    @torch.no_grad()
    def predict_proba(self, x: Tensor) -> Tensor:
        return self.forward(x, labels=None).softmax(1)

    def inner(self, x: Tensor) -> Tensor:
        return self.blocks[0](self.stem(x))

    def each(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.blocks[0].weight)

    def count(self) -> int:
        return sum(one.numel() for one in self.parameters())

    def freeze_but_head(self) -> None:
        self.frozen = True
        for block in self.blocks:
            block.requires_grad_(False)

    def reset_classifier(self, classes: int) -> None:
        self.num_classes, self.fc = classes, nn.Linear(self.fc.in_features, classes)

    def keep_head(self) -> None:
        self.kept = self.fc


class Net(Base):
    def predict(self, x: Tensor) -> Tensor:
        return super().predict(x) + 100


@pytest.fixture
def net() -> Net:
    return Net().eval()


@pytest.fixture
def guarded(net: Net) -> purifier.GuardedModule:
    return purifier.guard(net, ROUNDED)


def test_what_the_guard_lacks_is_the_classifiers(net: Net, guarded: purifier.GuardedModule) -> None:
    assert guarded.config is net.config and guarded.num_classes == 10
    assert guarded.device == net.device and guarded.none is None
    assert guarded.fc.weight is net.fc.weight and guarded.fc.in_features == 16
    assert isinstance(guarded.fc, nn.Linear) and guarded.fc == net.fc
    assert guarded.score is False  # the guard's own names win
    net.num_classes = 7
    assert guarded.num_classes == 7
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'nothing'"):
        guarded.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["predict", "predict_proba"])
def test_methods_that_call_themselves_are_guarded(name: str, net: Net, guarded: purifier.GuardedModule) -> None:
    found = getattr(guarded, name)(PIXELS)
    assert torch.equal(found, getattr(net, name)(PIXELS.round()))
    assert not torch.equal(found, getattr(net, name)(PIXELS))


PAST: dict[str, Callable[[Any], Any]] = {
    "stem": lambda guarded: guarded.inner(PIXELS),
    "blocks.0": lambda guarded: guarded.each(PIXELS.flatten(1)),
    "forward_features": lambda guarded: guarded.forward_features(PIXELS),
    "fc": lambda guarded: guarded.fc(torch.ones(2, 16)),
    "tail": lambda guarded: guarded.tail.forward(PIXELS),
    "tail.0": lambda guarded: guarded.tail[0](PIXELS),
    "blocks.1": lambda guarded: next(iter(guarded.blocks[1:2]))(PIXELS),
}


@pytest.mark.parametrize("name", [name for name in PAST if name != "blocks.1"])
def test_a_call_past_the_purifier_is_an_error(name: str, guarded: purifier.GuardedModule) -> None:
    with pytest.raises(UnguardedError, match=rf"'{name}' .* would skip the purifier; .* use guarded\.classifier"):
        PAST[name](guarded)


def test_parts_of_a_container_are_not_handed_out(guarded: purifier.GuardedModule) -> None:
    with pytest.raises(PurifierError, match="guarded.classifier"):
        PAST["blocks.1"](guarded)


def test_for_hasattr_such_a_method_is_missing(guarded: purifier.GuardedModule) -> None:
    assert not hasattr(guarded, "forward_features") and hasattr(guarded, "predict")
    assert torch.equal(guarded.classifier.inner(PIXELS), guarded.classifier.blocks[0](PIXELS.flatten(1)))


def test_what_a_method_sets_is_set_on_the_classifier(net: Net, guarded: purifier.GuardedModule) -> None:
    assert guarded.count() == net.count()
    guarded.freeze_but_head()
    assert net.frozen and not net.blocks[0].weight.requires_grad and net.fc.weight.requires_grad
    guarded.reset_classifier(4)
    assert net.num_classes == 4 and guarded(PIXELS).shape == (5, 4)
    guarded.keep_head()
    assert type(net.kept) is nn.Linear
    assert {key.partition(".")[0] for key in guarded.state_dict()} == {"classifier"}


def test_attributes_of_a_guard_are_set_on_the_guard(net: Net, guarded: purifier.GuardedModule) -> None:
    guarded.num_classes = 3
    assert (guarded.num_classes, net.num_classes) == (3, 10)
    del guarded.num_classes
    assert guarded.num_classes == 10
    with pytest.raises(AttributeError):
        del guarded.num_classes
    assert {name.partition(".")[0] for name, _ in guarded.named_parameters()} == {"classifier"}


def test_hooks_on_a_layer_see_the_purified_images(net: Net, guarded: purifier.GuardedModule) -> None:
    seen: list[Tensor] = []
    handle = guarded.stem.register_forward_hook(lambda layer, given, made: seen.append(made))
    guarded(PIXELS)
    handle.remove()
    guarded(PIXELS)
    assert len(seen) == 1 and torch.equal(seen[0], PIXELS.round().flatten(1))


def test_layers_can_be_listed_copied_and_saved(net: Net, guarded: purifier.GuardedModule) -> None:
    assert [name for name, _ in guarded.tail.named_modules()] == ["", "0", "1"]
    assert len(guarded.blocks) == 2 and guarded.fc in set(net.modules())
    for own in (copy.deepcopy(guarded.fc), pickle.loads(pickle.dumps(guarded.fc))):  # noqa: S301 - its own pickle
        assert type(own) is nn.Linear
        assert torch.equal(own(torch.ones(2, 16)), net.fc(torch.ones(2, 16)))


def test_copies_of_a_guard_have_their_own_classifiers_attributes(guarded: purifier.GuardedModule) -> None:
    for twin in (copy.deepcopy(guarded), pickle.loads(pickle.dumps(guarded))):  # noqa: S301 - its own pickle
        assert torch.equal(twin.predict(PIXELS), guarded.predict(PIXELS))
        assert twin.fc == twin.classifier.fc and twin.fc != guarded.fc
        assert type(twin).__qualname__ == "GuardedModule" and isinstance(twin, purifier.GuardedModule)


def test_frameworks_find_the_classifiers_signature_and_name(guarded: purifier.GuardedModule) -> None:
    """Hugging Face's Trainer reads that of the instance for columns, that of the class for labels, and the name."""
    assert list(inspect.signature(guarded.forward).parameters) == ["x", "labels"]
    assert list(inspect.signature(type(guarded).forward).parameters) == ["self", "x", "labels"]
    assert type(guarded).__name__ == "Net" and repr(type(guarded)).endswith("GuardedModule'>")
    given = {"x": PIXELS, "labels": None, "id": 3}
    kept = {name: given[name] for name in inspect.signature(guarded.forward).parameters}
    assert torch.equal(guarded(**kept), guarded(PIXELS))


def test_forward_can_be_wrapped_as_accelerate_does(guarded: purifier.GuardedModule) -> None:
    expected = guarded(PIXELS)
    wrapped = guarded.forward.__func__
    guarded.forward = lambda *args, **kwargs: 2 * wrapped(guarded, *args, **kwargs)
    assert torch.equal(guarded(PIXELS), 2 * expected)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # deprecated, and still in production
def test_a_scripts_methods_and_layers_are_not_handed_out() -> None:
    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.size = nn.Linear(784, 10), 784

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1))

        @torch.jit.export
        def predict(self, x: Tensor) -> Tensor:
            return self(x).argmax(1)

    net = torch.jit.script(Scripted())
    guarded = purifier.guard(net, ROUNDED)
    assert torch.equal(guarded(PIXELS), net(PIXELS.round())) and guarded.size == 784
    for name in ("predict", "fc"):
        with pytest.raises(UnguardedError, match=f"'{name}' .* use guarded.classifier"):
            getattr(guarded, name)


def test_a_compiled_classifiers_methods_do_not_reach_it_past_the_purifier(net: Net) -> None:
    guarded = purifier.guard(torch.compile(net, backend="eager"), ROUNDED)
    assert guarded.num_classes == 10
    with pytest.raises(UnguardedError):
        guarded.predict(PIXELS)


@pytest.mark.parametrize("inside", [nn.DataParallel])
def test_the_module_inside_a_wrapper_is_not_called_past_the_purifier(net: Net, inside: Any) -> None:
    guarded = purifier.guard(inside(net), ROUNDED)
    with pytest.raises(UnguardedError, match="'module'"):
        guarded.module(PIXELS)
