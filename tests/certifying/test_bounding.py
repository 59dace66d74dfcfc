"""certify() by bounds, and the same certificates in audits: against attacks, on ONNX guards, and errors."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from small_certified import random_certified, small_certified
from torch import Tensor, nn

import purifier
from nets import trained
from purifier.auditing.subject import NO_ANSWER
from purifier.errors import ConfigError
from purifier.reporting.certified_plot import certified_plot
from purifier.reporting.csv_lines import to_csv
from purifier.reporting.html import to_html
from purifier.reporting.markdown import to_markdown

pytestmark = pytest.mark.usefixtures("one_thread")
DATA, COUNT = "demo:60", 60


@pytest.fixture(scope="module")
def guarded() -> nn.Module:
    return purifier.guard(trained("net"), small_certified())


@pytest.fixture(scope="module")
def made(guarded: nn.Module) -> purifier.Certificates:
    return purifier.certify(guarded, DATA, eps=[0.02, 0.04])


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
    with pytest.raises(ConfigError, match="a classifier alone has no bounds; randomised smoothing needs none"):
        purifier.certify(path, DATA)


def test_another_classifier_gets_the_same_certificates(made: purifier.Certificates) -> None:
    other = purifier.certify(purifier.guard("demo", small_certified()), DATA, eps=[0.02, 0.04])
    assert (other.answers, other.radii) == (made.answers, made.radii)


def test_l2_is_certified_too(guarded: nn.Module, made: purifier.Certificates) -> None:
    found = purifier.certify(guarded, DATA, norm="l2", eps=0.1)
    assert found.norm == "l2" and found.answers == made.answers
    # The box of radius r / 28 is inside the ball of radius r, which is inside the box of radius r.
    for ball, box in zip(found.radii, made.radii, strict=True):
        assert box * 0.99 - 1e-4 <= ball <= box * 28 * 1.01 + 0.001
    assert "l2 radius; proven by bounds" in certified_plot(found)


def test_an_audit_certifies_and_compares(guarded: nn.Module, made: purifier.Certificates, tmp_path: Path) -> None:
    report = purifier.audit(guarded, DATA, eps=[0.02, 0.04], attacks=["pgd"], out=tmp_path)
    assert [(one.threat.eps, one.result) for one in report.certificates] == [
        (eps, made.certified(eps)) for eps in (0.02, 0.04)
    ]
    worst = {case.threat.eps: case.result for case in report.worst_case if case.model == "guarded"}
    assert all(worst[one.threat.eps].correct >= one.result.correct for one in report.certificates)
    assert "certificate-broken" not in [flag.name for flag in report.flags]
    assert purifier.AuditReport.load(tmp_path) == report
    assert "Proven for every attack" in to_html(report) and "linf 0.04, certified by bounds" in to_html(report)
    assert "none: certified by bounds" in to_markdown(report)
    lines = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert [(line["eps"], int(line["correct"])) for line in lines if line["kind"] == "certified"] == [
        ("0.02", made.certified(0.02).correct),
        ("0.04", made.certified(0.04).correct),
    ]
    l1 = purifier.audit(guarded, DATA, norm="l1", eps=1.0, attacks=[])
    assert l1.certificates == [] and l1.left_out == ["certificates: norm: Certified has bounds for linf, l2, got 'l1'"]


def test_a_proof_that_an_attack_contradicts_raises_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    sure = small_certified()
    guarded = purifier.guard(trained("net"), sure)
    true = type(sure).reachable
    monkeypatch.setattr(type(sure), "reachable", lambda self, pixels, norm, eps, _: true(self, pixels, norm, 0 * eps))
    report = purifier.audit(guarded, DATA, eps=[0.05, 0.3], attacks=["pgd"])
    flags = [flag.evidence for flag in report.flags if flag.name == "certificate-broken"]
    assert len(flags) == 2 and "guarded: pgd bpda linf 0.05 fools" in flags[0] and "certified at linf 0.05" in flags[0]
    assert not report.conclusive and "Proven" not in to_html(report)


def test_budgets_that_print_alike_are_told_apart(guarded: nn.Module, made: purifier.Certificates) -> None:
    close = [made.largest_radius * 1.0001, made.largest_radius * 0.999]
    report = purifier.audit(guarded, DATA, eps=close, attacks=[])
    assert len({f"{one:g}" for one in close}) <= 2 and [one.threat.eps for one in report.certificates] == close
    for certificate in report.certificates:
        assert certificate.result == purifier.certify(guarded, DATA, eps=certificate.threat.eps).certified(
            certificate.threat.eps
        )


def test_the_classifier_is_asked_about_components_in_batches(made: purifier.Certificates) -> None:
    sizes = []
    net = trained("net")
    net.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    found = purifier.certify(purifier.guard(net, small_certified()), DATA, eps=[0.02, 0.04], batch_size=4)
    assert found.answers == made.answers and max(sizes) <= 4


def test_the_plot_shows_what_is_certified_at_each_radius(made: purifier.Certificates) -> None:
    made = dataclasses.replace(
        made,
        labels=[1, 1, 1, 1],
        answers=[1, 1, 1, 1],
        radii=[0.05, 0.1, 0.1, 0.1],
        budgets=(0.1, 0.2),
        largest_radius=0.1,
    )
    picture = ElementTree.fromstring(certified_plot(made))
    (line,) = (one for one in picture.iter() if one.get("class") == "line")
    points = [tuple(float(value) for value in point.split(",")) for point in line.get("points", "").split()]
    width, height = points[-1][0] - points[0][0], points[-1][1] - points[0][1]
    steps = [((x - points[0][0]) / width * 0.2, 1 - (y - points[0][1]) / height) for x, y in points]
    expected = [(0, 1), (0, 1), (0.05, 1), (0.05, 0.75), (0.1, 0.75), (0.1, 0), (0.2, 0)]
    assert steps == [pytest.approx(point, abs=0.002) for point in expected]


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


def test_images_without_labels_are_certified_for_agreement(guarded: nn.Module, command, tmp_path: Path) -> None:
    pixels, _ = purifier.load_data(DATA).batch(range(COUNT))
    found = purifier.certify(guarded, pixels)
    assert found.right == "in agreement with the undefended classifier"
    assert found.labels == trained("net")(pixels).argmax(1).tolist()


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
    assert code == 2 and "the purifier Blur has no bounds; randomised smoothing needs none (sigma, --sigma)" in err
