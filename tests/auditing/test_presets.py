"""Presets: their sequences find as much as the attacks alone, and say what they leave out; gates."""

from __future__ import annotations

import pytest

from audit_helpers import COUNT, Masking, NoConfig, Noisy, audit_quickly, correct, printed, rows, worst
from purifier.attacking.specs import read_attack
from purifier.auditing import presets
from purifier.auditing.audit import audit
from purifier.auditing.presets import PRESETS, Preset
from purifier.errors import ConfigError
from purifier.guards.guard import guard

ATTACKS = ("fgsm", "pgd:steps=5", "noise:draws=3")


@pytest.fixture
def small(monkeypatch) -> None:
    """Presets of quick attacks."""
    small = {"standard": Preset(ATTACKS), "thorough": Preset((*ATTACKS[1:], "cw", "latent-match"), ("fgsm",), (1, 3))}
    monkeypatch.setattr(presets, "PRESETS", {**PRESETS, **small})


def test_a_sequence_finds_as_much_as_its_attacks_alone_and_costs_less(small):
    apart = audit_quickly(attacks=ATTACKS)
    together = audit_quickly(attacks=None)
    assert together.preset == "standard" and apart.preset is None
    for model in ("undefended", "guarded"):
        for scope in ("all", "white-box"):
            assert worst(together, model, scope) == worst(apart, model, scope)
    informed = rows(together, sequence="informed")
    assert [(row.attack, row.route) for row in informed] == [
        ("fgsm", "exact"),
        ("pgd:steps=5", "exact"),
        ("fgsm", "bpda"),
        ("pgd:steps=5", "bpda"),
        ("noise:draws=3", "none"),
    ]
    clean = correct(together, model="guarded", attack="none")
    assert [row.attacked for row in informed] == [clean, *(row.result.correct for row in informed[:-1])]
    assert all(row.attacked == COUNT for row in apart.rows if row.threat)
    assert informed[0].result == rows(apart, attack="fgsm", route="exact", model="guarded")[0].result
    assert informed[1].gradients_per_image <= 5
    assert sum(row.attacked for row in informed) < 5 * COUNT


def test_an_attack_without_the_guard_goes_on_until_both_are_fooled(small):
    found = audit_quickly(attacks=None)
    alone, guarded = (rows(found, model=model, sequence="oblivious") for model in ("undefended", "guarded"))
    # Gradient attacks go on while either is right, as their images are tried on the guard; queries do not.
    assert [row.attacked for row in alone] == [row.attacked for row in guarded]
    for before, *both in zip(range(2), alone[1:], guarded[1:], strict=True):
        standing = alone[before].result.correct, guarded[before].result.correct
        if both[0].attack.startswith("noise"):
            assert both[0].attacked == standing[0]
        else:
            assert max(standing) <= both[0].attacked <= sum(standing)


def test_a_sequence_does_not_depend_on_the_batch(small):
    one, other = (audit_quickly(attacks=None, batch_size=batch) for batch in (60, 17))
    assert [row.result for row in one.rows] == [row.result for row in other.rows]
    assert [row.attacked for row in one.rows] == [row.attacked for row in other.rows]


def test_each_budget_has_its_own_sequence(small):
    both, low = audit_quickly(attacks=None, eps=(0.03, 0.06)), audit_quickly(attacks=None, eps=0.03)
    assert [row.result for row in rows(both, threat=low.threats[0])] == [
        row.result for row in rows(low, threat=low.threats[0])
    ]


def test_attacks_that_cannot_run_are_left_out_with_a_reason(small, classifier, data, onnx_classifier, queries_only):
    found = audit(guard(classifier, Masking(NoConfig())), data, preset="thorough")
    assert not rows(found, attack="cw") and rows(found, attack="pgd:steps=5")
    assert any("attack 'cw' supports l2, not linf" in reason for reason in found.left_out)
    assert any("Masking has none" in reason for reason in found.left_out)
    assert "left out: attack 'cw' supports l2" in printed(found)
    queried = audit(guard(onnx_classifier, "blur"), data)
    assert {row.attack for row in queried.rows} == {"none", "noise:draws=3"}
    assert any("needs gradients of the classifier" in reason for reason in queried.left_out)
    assert {case.scope for case in queried.worst_case} == {"all"}
    with pytest.raises(ConfigError, match="no attack of the preset can run: .*the routes none, oblivious, got exact"):
        audit(guard(onnx_classifier, "blur"), data, routes=("exact",))


def test_a_random_purifier_is_swept_over_draws(small, classifier, data):
    found = audit(guard(classifier, Noisy(NoConfig())), data, preset="thorough", eps=0.1, eot=2, judgements=3)
    swept = rows(found, model="guarded", attack="fgsm", route="exact", sequence=None)
    costs = [(row.eot, row.gradients_per_image, row.attacked) for row in swept]
    assert costs == [(1, 1, COUNT), (3, 3, COUNT), (2, 2, COUNT)]
    (in_sequence,) = rows(found, model="guarded", attack="pgd:steps=5", sequence="informed", route="exact")
    assert in_sequence.eot == 2 and {row.eot for row in rows(found, attack="noise:draws=3")} == {1}
    assert in_sequence.worst_of_n.correct <= in_sequence.majority.correct <= COUNT
    (case,) = (case for case in found.worst_case if case.model == "guarded" and case.scope == "white-box")
    assert case.worst_of_n.correct <= case.majority.correct
    shown = printed(found)
    assert "fgsm (eot 3)" in shown and "right in most" in shown
    # A deterministic one has nothing to sweep.
    assert not [row for row in audit_quickly(attacks=None, preset="thorough").rows if row.eot != 1]


def test_attacks_added_to_a_preset_run_on_all_images(small):
    found = audit_quickly(preset="standard", attacks=("fgsm:loss=margin",))
    beside = rows(found, attack="fgsm:loss=margin")
    assert {row.sequence for row in beside} == {None} and {row.attacked for row in beside} == {COUNT}


def test_an_unknown_preset_is_an_error():
    with pytest.raises(ConfigError, match="preset must be one of quick, standard, thorough, got 'hard'"):
        audit_quickly(preset="hard")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_has_an_attack_for_each_norm(name, norm):
    assert any(norm in read_attack(spec).attack.norms for spec in (*PRESETS[name].sequence, *PRESETS[name].apart))


def test_the_gate_looks_at_the_lower_bound_of_the_worst_case():
    found = audit_quickly()
    (case,) = (case for case in found.worst_case if case.model == "guarded" and case.scope == "all")
    low, high = case.result.interval
    assert low < case.result.share < high
    assert found.gate(low) == [] and found.gate(low + 1e-6) == [case]
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=r"gate: expected a share of images in \[0, 1\]"):
            found.gate(share)
    with pytest.raises(ConfigError, match="a gate needs an attack on the audited model"):
        audit_quickly(attacks=()).gate(0.5)


def test_a_real_preset_runs(classifier, data):
    found = audit(guard(classifier, "blur"), data, eps=0.02, preset="quick")
    assert {row.attack for row in found.rows} == {"none", *PRESETS["quick"].apart}
    assert found.complete
