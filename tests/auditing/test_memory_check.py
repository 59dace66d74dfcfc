"""flags_of_memory(): a guard that remembers images is found wherever it keeps them, and nothing is left behind."""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import broken
from broken import Broken, Counts, HiddenRandom, Random, Recalls, Remembers, RemembersInClass, RemembersInGlobal
from purifier import Threat
from purifier.auditing import process_copy
from purifier.auditing.memory_check import flags_of_memory
from purifier.auditing.parts import audited_parts
from purifier.auditing.process_copy import in_process_copy
from purifier.errors import AuditError
from purifier.guards.guard import guard
from purifier.torch_tools.freezing import freeze
from scoring_purifiers import Classes, calibrated

OTHER = types.ModuleType("another_module_of_the_author")
OTHER.seen = []
sys.modules[OTHER.__name__] = OTHER


class Store:
    seen: ClassVar[OrderedDict[int, Tensor]] = OrderedDict()


@functools.cache
def made_once() -> list[Tensor]:
    return []


TENSOR, ARRAY = torch.full((64, 1, 28, 28), torch.nan), np.full((64, 1, 28, 28), np.nan, dtype=np.float32)


def _in_order(image: Tensor) -> list[Tensor]:
    Store.seen[len(Store.seen)] = image
    return list(Store.seen.values())


def _in_tensor(image: Tensor) -> list[Tensor]:
    count = int((~TENSOR.isnan()).all((1, 2, 3)).sum())
    TENSOR.data[count % 64] = image
    return list(TENSOR)


def _in_array(image: Tensor) -> list[Tensor]:
    count = int((~np.isnan(ARRAY)).all((1, 2, 3)).sum())
    ARRAY[count % 64] = image.numpy()
    return list(torch.from_numpy(ARRAY))


def _in_list(seen: list[Tensor]) -> Callable[[Tensor], list[Tensor]]:
    def keep(image: Tensor) -> list[Tensor]:
        seen.append(image)
        return seen

    return keep


class Keeps(Broken):
    """Gives back the first image near this one that ``keep`` returns, which keeps each image where it likes."""

    gradient = "surrogate"

    def __init__(self, keep: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.keep = keep

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return torch.stack([self._recalled(image) for image in pixels.detach()])

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels

    def _recalled(self, image: Tensor) -> Tensor:
        return next(one for one in self.keep(image.clone()) if (one - image).abs().max() <= broken.REACH)


class NoCopy(Remembers):
    """It cannot be copied, because it holds a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class CopyIsItself(Remembers):
    def __deepcopy__(self, memo: object) -> CopyIsItself:
        return self


class ScoreRemembers(Remembers):
    """Only its score remembers."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels

    def score(self, pixels: Tensor) -> Tensor:
        return broken.recalled(pixels, self.seen).mean((1, 2, 3))


class ClassesRemember(Classes):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def classify(self, pixels: Tensor) -> Tensor:
        return super().classify(broken.recalled(pixels, self.seen))


class BuildsOnce(Broken):
    """Healthy: it keeps what it computes once, which does not depend on the images."""

    half: Tensor | None = None

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        if BuildsOnce.half is None:
            BuildsOnce.half = torch.tensor(0.5)
        return pixels * BuildsOnce.half


def found(model, filter_, data, **options) -> list[str]:
    guarded = guard(model, filter_, **options)
    with freeze(guarded.classifier, guarded.purifier) as device:
        setup = audited_parts(guarded).setup(device)
        return [flag.name for flag in flags_of_memory(setup, data, [Threat("linf", 0.1)])]


REMEMBERING = {
    "in an attribute": Remembers,
    "in its class": RemembersInClass,
    "in a global": RemembersInGlobal,
    "in an ordered dict of another class": lambda: Keeps(_in_order),
    "in another module": lambda: Keeps(_in_list(OTHER.seen)),
    "in a cached function": lambda: Keeps(_in_list(made_once())),
    "in a closure": lambda: Keeps(_in_list([])),
    "in a tensor, unnoticed by autograd": lambda: Keeps(_in_tensor),
    "in a NumPy array": lambda: Keeps(_in_array),
    "although it cannot be copied": NoCopy,
    "although its copy is itself": CopyIsItself,
    "in its score": ScoreRemembers,
    "by counting": Counts,
}


@pytest.mark.parametrize("make", REMEMBERING.values(), ids=REMEMBERING)
def test_a_guard_that_remembers_is_found(make, classifier, data):
    assert found(classifier, make(), data) == ["stateful"]


def test_a_classifier_and_a_purifiers_own_classes_can_remember_too(classifier, data):
    assert found(torch.nn.Sequential(Recalls(), classifier), Broken(), data) == ["stateful"]
    filter_ = calibrated(ClassesRemember(), threshold=0.3)
    assert found(classifier, filter_, data, on_reject="reclassify") == ["stateful"]


@pytest.mark.parametrize("filter_", [Broken, Random, HiddenRandom, BuildsOnce, "demo", "bit-depth"])
def test_a_guard_that_does_not_remember_is_not_flagged(filter_, classifier, data):
    assert found(classifier, filter_ if isinstance(filter_, str) else filter_(), data) == []


def test_the_check_leaves_nothing_in_the_guards_memory(classifier, data):
    filter_ = Remembers()
    before = len(broken.SEEN), len(RemembersInClass.seen["images"])
    found(classifier, filter_, data), found(classifier, RemembersInGlobal(), data)
    assert not filter_.seen and (len(broken.SEEN), len(RemembersInClass.seen["images"])) == before


def test_a_copy_of_the_process_gives_its_tensors_or_an_error():
    value = {"one": torch.rand(3, 2).t()}
    torch.testing.assert_close(in_process_copy(lambda: value), value)
    with pytest.raises(AuditError, match="ZeroDivisionError: division by zero"):
        in_process_copy(lambda: 1 / 0)
    with pytest.raises(AuditError, match="it exited the program with code 3"):
        in_process_copy(lambda: sys.exit(3))


def test_a_copy_that_comes_to_a_standstill_is_given_up(monkeypatch, classifier, data):
    monkeypatch.setattr(process_copy, "SECONDS", 0.2)
    with pytest.raises(AuditError, match="ended without an answer"):
        in_process_copy(lambda: time.sleep(60))
    parent = os.getpid()

    class Waits(Remembers):
        def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
            if os.getpid() != parent:
                time.sleep(60)
            return super().purify(pixels, noise)

    assert found(classifier, Waits(), data) == ["stateful"]  # in a copy of the modules
