"""audit(): how each kind of purifier and classifier is judged, and left unchanged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import purifier
from audit_helpers import (
    COUNT,
    PGD,
    Masking,
    NearestMean,
    NoConfig,
    Noisy,
    OnlySome,
    Queries,
    audit_quickly,
    comparable,
    correct,
    rows,
    worst,
)
from purifier.auditing import audit as runner
from purifier.auditing.audit import audit
from purifier.auditing.self_checks import SelfChecks
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.errors import GradientError
from purifier.guards.guard import guard


def test_a_random_purifier_is_judged_several_times(classifier, data):
    guarded = guard(classifier, Noisy(NoConfig()))
    found = audit(guarded, data, eps=0.1, attacks=("fgsm",), eot=3, judgements=4)
    assert (found.eot, found.judgements) == (3, 4)
    for row in rows(found, model="guarded"):
        assert row.worst_of_n.count == COUNT
        assert row.worst_of_n.correct < row.result.correct < COUNT
        assert (4 * row.result.correct) % 1 == 0
    assert all(row.worst_of_n is None for row in rows(found, model="undefended"))
    (exact,) = rows(found, model="guarded", route="exact")
    assert exact.gradients_per_image == 3
    (case,) = (c for c in found.worst_case if c.model == "guarded" and c.scope == "white-box")
    assert case.worst_of_n.correct <= exact.worst_of_n.correct


def test_eot_and_judgements_are_one_for_a_deterministic_purifier():
    again = audit_quickly(eot=7, judgements=9)
    assert (again.eot, again.judgements) == (1, 1)
    assert comparable(again) == comparable(audit_quickly())


def test_judging_draws_other_noise_than_the_attack(classifier, data, monkeypatch):
    seen = []

    class Spy(Noisy):
        def purify(self, pixels, noise=None):
            if noise is not None:  # the score has none
                seen.append(noise[0, 0, 0, 0].item())
            return super().purify(pixels, noise)

    options = {"eps": 0.1, "attacks": ("pgd:steps=2",), "judgements": 3, "routes": ("exact",), "eot": 1}
    monkeypatch.setattr(runner, "self_check", lambda *_, **__: SelfChecks([], []))
    monkeypatch.setattr(runner, "Answers", lambda *_: SimpleNamespace(flags=list))
    audit(guard(classifier, Spy(NoConfig())), data, **options)
    # Try-outs, all with the same noise; three clean judgements; two gradients and a last look; three judgements.
    judged = 3 + 3 + 3
    assert len(set(seen[:-judged])) == 1 and len(set(seen)) == 1 + judged


def test_a_masked_gradient_is_seen_through_by_bpda(classifier, data):
    found = audit(guard(classifier, Masking(NoConfig())), data, eps=0.1, attacks=(PGD,))
    exact, bpda = (correct(found, model="guarded", route=route) for route in ("exact", "bpda"))
    assert bpda < exact
    assert worst(found, "guarded", "white-box") <= bpda


def test_a_surrogate_purifier_has_no_exact_route(classifier, data):
    found = audit(guard(classifier, "bit-depth"), data, eps=0.05, attacks=("fgsm",))
    assert {row.route for row in rows(found, model="guarded")} == {None, "bpda", "oblivious"}
    with pytest.raises(GradientError, match=r"BitDepth has no exact gradient .* use the route bpda"):
        audit(guard(classifier, "bit-depth"), data, attacks=("fgsm",), routes=("exact",))


def test_modules_are_restored_afterwards(data):
    class Backward(OnlySome):
        def perturb(self, target, pixels, labels, threat, generator):
            leaf = pixels.clone().requires_grad_()
            target(leaf).sum().backward()
            return pixels + threat.eps * leaf.grad.sign()

    module = NearestMean().train()
    module.head.bias.requires_grad_(False)
    filter_ = purifier.load("vae:image_shape=1x28x28,channels=4,latent=8")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    guarded = guard(module, filter_)
    filter_.encoder.train().requires_grad_()
    found = audit(guarded, data, eps=0.1, attacks=(Backward(),))
    assert found.complete
    assert module.training and module.drop.training and not module.head.bias.requires_grad
    assert module.head.weight.requires_grad
    assert filter_.encoder.training and not filter_.decoder.training
    assert all(weight.requires_grad for weight in filter_.encoder.parameters())
    assert not any(weight.requires_grad for weight in filter_.decoder.parameters())
    assert all(weight.grad is None for weight in (*module.parameters(), *filter_.parameters()))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_models_are_judged_in_evaluation_mode(data, classifier, report):
    found = audit(guard(NearestMean().train(), "blur"), data, eps=0.05, attacks=("fgsm",))
    assert correct(found, model="guarded", attack="none") == correct(report, model="guarded", attack="none")


def test_the_judge_uses_the_guards_preprocessing(classifier, data):
    class Scaled(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return classifier((images / 255).permute(0, 3, 1, 2).contiguous())

    wants = Preprocessing(scale=255, layout="NHWC")
    scaled = audit(guard(Scaled(), "blur", preprocessing=wants), data, eps=0.05, attacks=("fgsm",))
    plain = audit(guard(classifier, "blur"), data, eps=0.05, attacks=("fgsm",))
    assert [row.result for row in scaled.rows] == [row.result for row in plain.rows]
    assert isinstance(guard(Scaled(), "blur").pixel_classifier(), TorchPixelClassifier)


def test_a_session_is_judged_as_it_runs_without_noise(onnx_classifier, data):
    torch.manual_seed(0)
    vae = purifier.load("vae:image_shape=1x28x28,channels=4,latent=8,sample=true")
    session = guard(onnx_classifier, vae)
    found = audit(session, data, attacks=())
    pixels, labels = data.batch(range(COUNT))
    (logits,) = session.run(None, {"images": pixels.numpy()})
    assert correct(found, model="guarded") == (logits.argmax(1) == labels.numpy()).sum()
    assert found.judgements == 1 and found.purifier["plugin"] == "vae"


def test_an_onnx_classifier_without_gradients_is_audited_by_queries(onnx_classifier, data, report, queries_only):
    guarded = guard(onnx_classifier, "blur")
    with pytest.raises(
        GradientError,
        match=r"an ONNX model on \w+ has none \(no support for .*Sorcery\); use the torch",
    ):
        audit(guarded, "npz:nowhere.npz", attacks=("pgd",))
    clean = audit(guarded, data, attacks=())
    assert [row.attack for row in clean.rows] == ["none", "none"] and not clean.worst_case
    for model in ("undefended", "guarded"):
        assert correct(clean, model=model) == correct(report, model=model, attack="none")
    queried = audit(guarded, data, eps=0.3, attacks=(Queries(),))
    assert {row.route for row in rows(queried, attack="Queries")} == {"none", "oblivious"}
    assert {case.scope for case in queried.worst_case} == {"all"}
    assert worst(queried, "undefended", "all") < correct(queried, model="undefended", attack="none")


def test_an_exported_classifier_is_audited(classifier, data, tmp_path, report):
    shapes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(classifier, (torch.rand(2, 1, 28, 28),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "classifier.pt2")
    found = audit(guard(tmp_path / "classifier.pt2", "blur"), data, eps=0.05, attacks=(PGD, "fgsm"))
    assert [row.result for row in found.rows] == [row.result for row in report.rows]
