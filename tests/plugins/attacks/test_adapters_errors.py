"""Errors of the adapters, and what the libraries get to see."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

import purifier
from attack_helpers import NoConfig, Noisy, Same, run
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError, GradientError
from purifier.seeding import SampleGenerator


@pytest.mark.parametrize(
    ("spec", "module", "says"),
    [
        (
            "foolbox:LinfPGD",
            "foolbox",
            r"attack 'foolbox' needs foolbox, .*pip install 'adversarial-purifier\[foolbox\]'",
        ),
        ("torchattacks:PGD", "torchattacks", "needs torchattacks, .*pip install --no-deps torchattacks"),
        ("art:DeepFool", "art.attacks.evasion", r"needs art, .*pip install 'adversarial-purifier\[art\]'"),
        ("pyautoattack", "pyautoattack", r"pip install 'adversarial-purifier\[pyautoattack\]'"),
    ],
)
def test_a_missing_library_says_what_to_install_before_any_work(spec, module, says, monkeypatch, net):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=says):
        purifier.audit(purifier.guard(net, "identity"), "demo", attacks=[spec])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("foolbox", "attack 'foolbox' needs the option 'name'"),
        ("foolbox:LinfPDG", "no attack 'LinfPDG' that can be run here; did you mean LinfPGD"),
        ("foolbox:SpatialAttack", "no attack 'SpatialAttack' that can be run here"),
        ("foolbox:L0FMNAttack", "L0FMNAttack bounds none of linf, l2 and l1"),
        ("foolbox:LinfPGD,step=3", "LinfPGD has no option 'step'; its options are: abs_stepsize, random_start"),
        ("foolbox:LinfPGD,eps=3", "eps comes from the threat"),
        ("foolbox:VirtualAdversarialAttack", "does not accept its options: .*steps"),
        ("torchattacks:pgd_l2", "did you mean PGDL2"),
        ("torchattacks:Pixle", "Pixle bounds none"),
        ("torchattacks:PGD,norm=L2", "norm comes from the threat"),
        ("torchattacks:PGD,stepz=L2", "its options are: alpha, random_start, steps"),
        ("art:PGD", "no attack 'PGD' that can be run here; .*AutoProjectedGradientDescent"),
        ("art:HopSkipJump,targeted=true", "targeted comes from the threat, and attacks are untargeted"),
        ("art:DeepFool,steps=3", "its options are: batch_size, epsilon, max_iter"),
        ("pyautoattack:apgd", "did you mean apgd-"),
        ("pyautoattack:standard,n_iter=0", "n_iter must be a whole number of at least 1, got 0"),
        ("pyautoattack:standard,steps=9", "its options are: eot_iter, n_iter"),
    ],
)
def test_bad_specs_are_errors_with_advice(spec, says):
    if spec != "foolbox":
        pytest.importorskip(spec.partition(":")[0])
    with pytest.raises(ConfigError, match=says):
        read_attack(spec)


@pytest.mark.parametrize(
    ("spec", "norms"),
    [
        ("foolbox:LinfPGD", ("linf",)),
        ("foolbox:EADAttack", ("l1",)),
        ("foolbox:InversionAttack", ("linf", "l2", "l1")),
        ("foolbox:HopSkipJumpAttack", ("linf", "l2")),
        ("torchattacks:CW", ("l2",)),
        ("torchattacks:VMIFGSM", ("linf",)),
        ("art:CarliniLInfMethod", ("linf",)),
        ("art:BoundaryAttack", ("l2",)),
        ("pyautoattack:standard", ("linf", "l2", "l1")),
    ],
)
def test_an_unsupported_norm_is_an_error_before_any_work(spec, norms, net, images):
    pytest.importorskip(spec.partition(":")[0])
    assert read_attack(spec).attack.norms == norms
    for norm in {"linf", "l2", "l1"} - set(norms):
        with pytest.raises(ConfigError, match=f"supports {', '.join(norms)}, not {norm}"):
            purifier.audit(purifier.guard(net, "identity"), "demo", norm=norm, eps=0.5, attacks=[spec])
        with pytest.raises(ConfigError, match=f"supports {', '.join(norms)}, not {norm}"):
            run(spec, net, images[0][:2], images[1][:2], Threat(norm, 0.5))


@pytest.mark.parametrize(
    ("spec", "option", "low", "high"),
    [
        ("foolbox:LinfPGD", "steps", 2, 7),
        ("torchattacks:PGD", "steps", 2, 7),
        ("art:ProjectedGradientDescent", "max_iter", 2, 7),
        ("pyautoattack:apgd-ce,n_restarts=1", "n_iter", 2, 7),
    ],
)
def test_options_reach_the_library(spec, option, low, high, net, images):
    pytest.importorskip(spec.partition(":")[0])
    pixels, labels = (part[:4] for part in images)
    labels = net(pixels).argmax(1)
    counts = []
    for value in (low, high):
        target = _target(net, Same(NoConfig()), 4)
        attack = read_attack(f"{spec},{option}={value}").attack
        # So small that nothing is fooled, and no attack ends early.
        attack.perturb(target, pixels, labels, Threat("linf", 1e-5), SampleGenerator(0, range(4)))
        counts.append(target.spent.gradients / 4)
    assert counts[1] - counts[0] == high - low


def test_fewer_classes_than_the_ensemble_targets_are_enough(images):
    pytest.importorskip("pyautoattack")
    torch.manual_seed(0)
    four = nn.Sequential(nn.Flatten(), nn.Linear(784, 4)).eval()
    pixels = images[0][:8]
    labels = four(pixels).argmax(1)
    found = run("pyautoattack:standard,n_iter=5,n_queries=10", four, pixels, labels, Threat("linf", 0.3))
    assert (four(found).argmax(1) != labels).all()


def test_a_gradient_on_a_route_without_any_is_an_error(net, images):
    pytest.importorskip("torchattacks")
    attack = read_attack("torchattacks:FGSM").attack
    with pytest.raises(GradientError, match="none arrive along the route 'none'; choose a route with gradients"):
        attack.perturb(
            _target(net, Same(NoConfig()), 4, "none"),
            images[0][:4],
            images[1][:4],
            Threat("linf", 0.1),
            SampleGenerator(0, range(4)),
        )


class Peeks(Same):
    """Records the noise of each call."""

    def __init__(self) -> None:
        super().__init__(NoConfig())
        self.noises: list[Tensor] = []

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor:
        return generator.normal(pixels.shape[1:], pixels)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is not None:
            self.noises.append(noise)
        return Noisy(NoConfig()).purify(pixels, noise)


def test_queries_of_any_size_get_fresh_noise(net, images):
    pytest.importorskip("pyautoattack")
    peeks = Peeks()
    target = _target(net, peeks, 12)
    attack = read_attack("pyautoattack:standard,n_iter=3,n_queries=5").attack
    attack.perturb(target, images[0][:12], images[1][:12], Threat("linf", 0.02), SampleGenerator(0, range(12)))
    assert len({len(noise) for noise in peeks.noises}) > 2
    drawn = torch.cat([noise[:, 0, 0, 0] for noise in peeks.noises])
    assert len(drawn.unique()) == len(drawn) > 100


def test_a_library_can_neither_move_nor_train_what_it_attacks(images):
    pytest.importorskip("torchattacks")
    net = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(784, 10)).eval()
    target = _target(net, Same(NoConfig()), 4)
    seen = []

    class Vandal:
        def __init__(self, model: nn.Module) -> None:
            seen.append(list(model.children()))
            self.model = model.double().train()

        def __call__(self, pixels: Tensor, labels: Tensor) -> Tensor:
            seen.append(self.model(pixels).dtype)
            return pixels

    import torchattacks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchattacks, "PGD", Vandal)
        attack = read_attack("torchattacks:PGD").attack
        attack.perturb(target, images[0][:4], images[1][:4], Threat("linf", 0.1), SampleGenerator(0, range(4)))
    assert seen == [[], torch.float32]
    assert not net.training and net[2].weight.dtype == torch.float32


def _target(net: nn.Module, filter_: purifier.Purifier, count: int, route: str = "exact") -> Target:
    return Target(TorchPixelClassifier(net, Preprocessing()), filter_, route, SampleGenerator(1, range(count)))
