"""certify() by bounds, and the same certificates in audits: against attacks, on ONNX guards, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_certified import random_certified, small_certified
from torch import Tensor, nn

import purifier
from nets import trained
from purifier.auditing.proofs import NO_ANSWER
from purifier.errors import ConfigError
from purifier.reporting.certified_plot import certified_plot

pytestmark = pytest.mark.usefixtures("one_thread")
DATA, COUNT = "demo:60", 60


@pytest.fixture(scope="module")
def guarded() -> nn.Module:
    return purifier.guard(trained("net"), small_certified())


@pytest.fixture(scope="module")
def made(guarded: nn.Module) -> purifier.Certificates:
    return purifier.certify(guarded, DATA, eps=[0.02, 0.04])


class Renamed(nn.Module):
    """The classifier `net` with two classes exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained("net")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits[:, [0, 1, 3, 2, 4, 5, 6, 7, 8, 9]]


class Undecided(nn.Module):
    """Gives all classes the same logit."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :1].expand(-1, 10) * 1.0


def test_radii_are_proven_and_the_next_step_is_not(guarded: nn.Module, made: purifier.Certificates) -> None:
    assert (made.method, made.norm, made.model, made.budgets) == ("bounds", "linf", "guarded", (0.02, 0.04))
    assert made.sigma is None and made.counts is None and made.alpha is None
    pixels, _ = purifier.load_data(DATA).batch(range(COUNT))
    filter_, radii = small_certified(), torch.tensor(made.radii, dtype=torch.float64)
    with torch.no_grad():
        assert made.answers == guarded(pixels).argmax(1).tolist()
        inside = filter_.reachable(pixels, "linf", radii)
        outside = filter_.reachable(pixels, "linf", radii + 0.001)
    assert (inside.sum(1)[radii > 0] == 1).all() and (outside.sum(1)[radii > 0] > 1).all()
    right = torch.tensor(made.answers) == torch.tensor(made.labels)
    eps = torch.full((COUNT,), 0.02)
    exactly = (filter_.reachable(pixels, "linf", eps + 1e-6).sum(1) == 1) & right
    assert made.certified(0.02).correct == int(exactly.sum()) > 20
    assert made.certified(0).correct == int(right.sum()) and made.steps() == [0, 0.02, 0.04]
    assert made.largest_radius == max(made.radii) and made.certified(made.largest_radius).correct <= 1


def test_no_attack_changes_a_certified_answer(guarded: nn.Module, made: purifier.Certificates) -> None:
    """Images at random places and along the surrogate's gradient, at the edge of each certified ball."""
    pixels, _ = purifier.load_data(DATA).batch(range(COUNT))
    answers, radii = torch.tensor(made.answers), torch.tensor(made.radii).view(-1, 1, 1, 1)
    filter_ = small_certified()
    moved = pixels.clone()
    for step in range(40):
        leaf = moved.requires_grad_()
        loss = nn.functional.cross_entropy(filter_.scores(leaf), answers)
        (slope,) = torch.autograd.grad(loss, leaf)
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(step)).sign()
        start = moved if step % 4 else pixels + radii * noise
        moved = (start + radii / 5 * slope.sign()).detach()
        moved = torch.minimum(torch.maximum(moved, pixels - radii), pixels + radii).clamp(0, 1)
        with torch.no_grad():
            assert torch.equal(guarded(moved).argmax(1)[radii.flatten() > 0], answers[radii.flatten() > 0])
    with torch.no_grad():
        twice = guarded((pixels + 4 * radii * slope.sign()).clamp(0, 1)).argmax(1)
    assert (twice != answers).sum() > 10  # the attack is one


def test_an_onnx_guard_gets_the_same_certificates(tmp_path: Path, made: purifier.Certificates) -> None:
    alone = purifier.guard(trained("net"), "identity")
    path = purifier.export(alone, tmp_path / "net.onnx", image_shape=(1, 28, 28)).path
    found = purifier.certify(purifier.guard(path, small_certified()), DATA, eps=[0.02, 0.04], batch_size=7)
    assert found.answers == made.answers and np.allclose(found.radii, made.radii, atol=1e-4)
    with pytest.raises(ConfigError, match="a classifier alone has no bounds; certify it by randomised smoothing"):
        purifier.certify(path, DATA)


def test_another_classifier_gets_the_same_certificates(made: purifier.Certificates) -> None:
    other = purifier.certify(purifier.guard("demo", small_certified()), DATA, eps=[0.02, 0.04])
    assert (other.answers, other.radii) == (made.answers, made.radii)


def test_l2_is_certified_too(guarded: nn.Module, made: purifier.Certificates) -> None:
    found = purifier.certify(guarded, DATA, norm="l2", eps=0.1)
    assert found.norm == "l2" and found.answers == made.answers
    # A ball of radius r holds the box of r / 28 and lies in the box of r.
    for ball, box in zip(found.radii, made.radii, strict=True):
        assert box * 0.99 - 1e-4 <= ball <= box * 28 * 1.01 + 0.03
    assert "l2 radius; proven by bounds" in certified_plot(found)


@pytest.mark.parametrize(
    ("classifier", "says"),
    [
        (Renamed(), "answers that of component 2 with class 3, 3 with class 2; train the purifier for this classifier"),
        (Undecided(), "component 0 with no class clearly, 1 with no class clearly, .* and 7 others"),
    ],
)
def test_a_classifier_that_answers_components_wrongly_is_named(classifier: nn.Module, says: str) -> None:
    guarded = purifier.guard(classifier, small_certified())
    with pytest.raises(ConfigError, match=says):
        purifier.certify(guarded, DATA)
    report = purifier.audit(guarded, DATA, attacks=())
    assert report.certificates == [] and "certify: the classifier must answer" in report.left_out[0]


def test_what_bounds_do_not_cover_is_refused(guarded: nn.Module) -> None:
    with pytest.raises(ConfigError, match="norm: Certified has bounds for linf, l2, got 'l1'"):
        purifier.certify(guarded, DATA, norm="l1")
    for eps in (0.0, -0.1, float("nan"), [], "much"):
        with pytest.raises(ConfigError, match="eps: expected budgets in pixel units above 0"):
            purifier.certify(guarded, DATA, eps=eps)
    with pytest.raises(ConfigError, match="the purifier Vae has no bounds; certify it by randomised smoothing"):
        purifier.certify(purifier.guard(trained("net"), "demo-plain"), DATA)
    with pytest.raises(ConfigError, match="smoothing finds radii in l2; leave norm and eps out"):
        purifier.certify(guarded, DATA, sigma=0.1, norm="linf")
    calibrated = small_certified()
    purifier.calibrate(calibrated, "demo:40", fpr=0.1)
    rejecting = purifier.guard(trained("net"), calibrated, on_reject="abstain")
    with pytest.raises(ConfigError, match="bounds do not cover rejection"):
        purifier.certify(rejecting, DATA)
    half = purifier.guard(trained("net"), small_certified())
    half.purifier.half()
    with pytest.raises(ConfigError, match=r"bounds hold for float32, but the purifier's weights are torch.float16"):
        purifier.certify(half, DATA)


def test_an_audit_certifies_and_compares(guarded: nn.Module, made: purifier.Certificates, tmp_path: Path) -> None:
    report = purifier.audit(guarded, DATA, eps=[0.02, 0.04], attacks=["pgd"], out=tmp_path)
    assert [(one.threat.eps, one.result) for one in report.certificates] == [
        (eps, made.certified(eps)) for eps in (0.02, 0.04)
    ]
    worst = {case.threat.eps: case.result for case in report.worst_case if case.model == "guarded"}
    assert all(worst[one.threat.eps].correct >= one.result.correct for one in report.certificates)
    assert "certificate-broken" not in [flag.name for flag in report.flags]
    assert purifier.AuditReport.load(tmp_path) == report
    l1 = purifier.audit(guarded, DATA, norm="l1", eps=1.0, attacks=[])
    assert l1.certificates == []


def test_a_proof_that_an_attack_contradicts_raises_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    sure = small_certified()
    guarded = purifier.guard(trained("net"), sure)
    true = type(sure).reachable
    monkeypatch.setattr(type(sure), "reachable", lambda self, pixels, norm, eps, _: true(self, pixels, norm, 0 * eps))
    report = purifier.audit(guarded, DATA, eps=[0.05, 0.3], attacks=["pgd"])
    flags = [flag.evidence for flag in report.flags if flag.name == "certificate-broken"]
    assert len(flags) == 2 and "guarded: pgd bpda linf 0.05 fools" in flags[0] and "certified at linf 0.05" in flags[0]
    assert not report.conclusive


def test_an_untrained_purifier_certifies_little_and_never_more_than_it_has(images) -> None:
    made = purifier.certify(purifier.guard(Distinct(), random_certified((1, 28, 28), channels=4, hidden=8)), DATA)
    assert made.steps() == [0, 0.1] and made.certified(0.1).correct == 0
    assert NO_ANSWER not in made.answers


class Distinct(nn.Module):
    """Answers the ten images of an untrained purifier with ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("known", random_certified((1, 28, 28), channels=4, hidden=8).images)

    def forward(self, images: Tensor) -> Tensor:
        return -torch.cdist(images.flatten(1), self.known.flatten(1))


def test_the_command_certifies_by_bounds(command, tmp_path: Path) -> None:
    path = purifier.save(small_certified(), tmp_path / "small.safetensors")
    line = ["certify", "--classifier", "demo", "--purifier", path, "--data", "demo:20", "--out", tmp_path / "out"]
    code, out, err = command(*line, "--eps", "2/255", "--eps", "0.02", "--norm", "linf")
    assert code == 0, err
    assert "right and certified, 20 images of demo:20, with 95% interval; linf, proven by bounds" in out
    assert "0.00784" in out and "smoothed" not in out and "no answer" not in out
    found = purifier.Certificates.load(tmp_path / "out")
    assert found.budgets == (2 / 255, 0.02) and (tmp_path / "out/certificates.svg").exists()
    code, _, err = command("certify", "--classifier", "demo", "--purifier", "blur", *line[5:], "--overwrite")
    assert code == 2 and "the purifier Blur has no bounds; certify it by randomised smoothing: give sigma" in err
