"""craft(): an attack changes nothing but its images, neither the guard's modules nor the process."""

from __future__ import annotations

import contextlib
import copy
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit_helpers import PGD, NearestMean, comparable
from broken import Broken
from mistaken import Learning
from purifier import Attack, Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Spent, Target
from purifier.auditing.audit import audit
from purifier.auditing.crafting import craft
from purifier.auditing.parts import audited_parts
from purifier.auditing.plan import Job
from purifier.auditing.setup import AuditSetup
from purifier.data.images import ImageData
from purifier.errors import AuditError
from purifier.guards.guard import guard
from purifier.torch_tools.freezing import freeze


@dataclass(frozen=True)
class Meddles(Attack):
    """Does something to its target, and returns the images."""

    act: Callable[[Target], object] = print
    needs: ClassVar[str] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def perturb(self, target, pixels, labels, threat, generator):
        self.act(target)
        return pixels


class Filter(Broken):
    """Filters by an attribute, and has a buffer, a layer and a cache of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.strength, self.asked = 0.5, 0
        self.norm = nn.BatchNorm2d(1)
        self.register_buffer("table", torch.tensor([0.0, torch.nan]))

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        self.asked += 1  # its own business
        self.sizes = torch.tensor(pixels.shape)
        return self.strength * pixels


def in_place(target: Target) -> None:
    target.classifier.module.head.weight.data.mul_(-1)


def by_numpy(target: Target) -> None:
    target.classifier.module.head.bias.detach().numpy()[:] = 0


def replaced(target: Target) -> None:
    target.classifier.module.head.weight = nn.Parameter(torch.zeros(10, 784))


def in_double(target: Target) -> None:
    target.classifier.double()


def tracked(target: Target) -> None:
    for weight in target.parameters():
        weight.requires_grad_()
    target(torch.rand(60, 1, 28, 28)).sum().backward()


def hooked(target: Target) -> None:
    target.classifier.module.head.register_forward_hook(lambda layer, given, logits: 0 * logits)


def patched(target: Target) -> None:
    type(target.purifier).purify = lambda self, pixels, noise=None: pixels


WEIGHT = "the weight 'head.weight' of the classifier"
CHANGES = {
    "weights in place": (in_place, WEIGHT),
    "weights through NumPy": (by_numpy, "the weight 'head.bias' of the classifier"),
    "another weight": (replaced, "'weight' of 'head' of the classifier"),
    "precision": (in_double, WEIGHT),
    "a buffer": (lambda target: target.purifier.table.add_(1), "the buffer 'table' of the purifier"),
    "mode": (lambda target: target.classifier.train(), "the mode (train, eval) of the classifier"),
    "mode of a layer": (
        lambda target: target.purifier.norm.train(),
        "the mode (train, eval) of 'norm' of the purifier",
    ),
    "requires_grad": (tracked, f"requires_grad of {WEIGHT}"),
    "a hook": (hooked, "a hook of 'head' of the classifier"),
    "a layer": (lambda target: setattr(target.purifier, "norm", nn.Identity()), "'norm' of the purifier"),
    "an attribute": (lambda target: setattr(target.purifier, "strength", 0.0), "'strength' of the purifier"),
    "a new method": (lambda target: setattr(target.purifier, "score", torch.sum), "'score' of the purifier"),
    "its class": (patched, "'purify' of the class Filter"),
}


@pytest.fixture
def setup():
    """A guard's setup, as an audit makes it; its modules' own modes differ."""
    parts = audited_parts(guard(NearestMean().eval(), Filter()))
    with freeze(parts.classifier, parts.purifier) as device:
        yield parts.setup(device)


def run(setup: AuditSetup, data: ImageData, attack: Attack | str) -> Tensor:
    job = Job(read_attack(attack), Threat("linf", 0.1), "exact")
    return craft(setup, job, setup.batch(data, range(len(data))), Spent())


@pytest.mark.parametrize(("act", "said"), CHANGES.values(), ids=CHANGES)
def test_an_attack_that_changes_a_module_is_named_and_the_change_is_undone(act, said, setup, data):
    parts = nn.ModuleList([setup.classifier, setup.purifier])
    before, modes = copy.deepcopy(parts.state_dict()), [part.training for part in parts.modules()]
    asked, expected = setup.batch(data, range(4)).pixels, run(setup, data, PGD)
    logits = setup.classifier(setup.purifier(asked))
    with pytest.raises(AuditError, match=rf"attack 'Meddles.*' changed .*{re.escape(said)}.*only ask its target"):
        run(setup, data, Meddles(act))
    after = parts.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True)
    assert [part.training for part in parts.modules()] == modes
    assert not any(weight.requires_grad or weight.grad is not None for weight in parts.parameters())
    torch.testing.assert_close(setup.classifier(setup.purifier(asked)), logits, rtol=0, atol=0)
    torch.testing.assert_close(run(setup, data, PGD), expected, rtol=0, atol=0)


def test_an_attack_that_fails_or_is_stopped_leaves_no_change_either(setup, data):
    for error in (ValueError("no"), KeyboardInterrupt()):

        def act(target: Target, error: BaseException = error) -> None:
            in_place(target)
            raise error

        before = setup.classifier.module.head.weight.clone()
        with pytest.raises(type(error)):
            run(setup, data, Meddles(act))
        assert torch.equal(setup.classifier.module.head.weight, before)


def test_what_a_guard_changes_itself_is_not_the_attacks_fault(setup, data, classifier):
    run(setup, data, PGD)
    assert setup.purifier.asked > 5
    found = audit(guard(classifier, Learning()), data, attacks=(PGD,), routes=("exact",), probes=2)
    assert all(row.error is None for row in found.rows) and {flag.name for flag in found.flags} == {"stateful"}


def test_an_audit_names_the_attack_and_goes_on_as_if_it_had_not_run(classifier, data):
    bad = Meddles(in_place)
    options = {"eps": 0.05, "routes": ("exact",), "probes": 2, "batch_size": 30}
    alone, after = (audit(guard(classifier, "blur"), data, attacks=some, **options) for some in ((PGD,), (bad, PGD)))
    failed = [row for row in after.rows if row.attack.startswith("Meddles")]
    assert failed and all(re.search("Meddles.* changed the weight 'head.weight'", row.error) for row in failed)
    assert [row for row in comparable(after) if row not in failed][1:] == comparable(alone)[1:]
    assert not after.flags and not after.conclusive


PROCESS = {
    "dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "gradients": (lambda: torch.set_grad_enabled(not torch.is_grad_enabled()), torch.is_grad_enabled),
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), torch.get_num_threads),
    "deterministic": (lambda: torch.use_deterministic_algorithms(True), torch.are_deterministic_algorithms_enabled),
    "matmul": (lambda: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision),
    "anomaly": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
    "torch's numbers": (lambda: torch.manual_seed(3), lambda: torch.get_rng_state().tolist()),
    "NumPy's numbers": (lambda: np.random.seed(3), lambda: np.random.get_state()[1].tolist()),
    "Python's numbers": (lambda: random.seed(3), random.getstate),
    "NumPy's errors": (lambda: np.seterr(all="ignore"), np.geterr),
    "warnings": (lambda: warnings.simplefilter("ignore"), lambda: list(warnings.filters)),
}


@pytest.mark.parametrize(("act", "read"), PROCESS.values(), ids=PROCESS)
def test_an_attack_cannot_change_settings_of_the_process(act, read, setup, data):
    before = read()
    run(setup, data, Meddles(lambda _: act()))
    assert read() == before


DECISIVE = {
    "dtype": "torch's default dtype",
    "device": "torch's default device",
    "gradients": "whether torch records gradients",
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", PROCESS)
def test_an_audit_leaves_the_settings_of_the_process_whatever_a_purifier_does(name, classifier, data):
    act, read = PROCESS[name]

    class Sets(Broken):
        def score(self, pixels: Tensor) -> Tensor:
            act()
            return pixels.mean((1, 2, 3))

    before = read()
    expected = contextlib.nullcontext()
    if name in DECISIVE:
        expected = pytest.raises(AuditError, match=f"Sets.score changed {DECISIVE[name]} for the whole process; make")
    with expected:
        audit(guard(classifier, Sets()), data, attacks=())
    assert read() == before


def test_global_random_numbers_come_from_the_seed_and_are_not_the_judges(setup, data):
    drawn = []

    def draw(target: Target) -> None:
        drawn.append((torch.rand(3).tolist(), np.random.rand(), random.random()))

    for _ in range(2):
        run(setup, data, Meddles(draw))
        torch.rand(1), np.random.rand(), random.random()
    assert drawn[0] == drawn[1]
    state = torch.get_rng_state()
    run(setup, data, Meddles(draw))
    assert torch.equal(torch.get_rng_state(), state) and torch.rand(3).tolist() != drawn[0][0]
