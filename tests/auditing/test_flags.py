"""compare(): flags for figures that contradict each other; and the catalogue of flags."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor

from broken import Reversed
from controls import CONTROLS
from mistaken import MISTAKES, Mistake
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.auditing.audit import audit
from purifier.auditing.comparing import compare
from purifier.auditing.counting import PendingRow
from purifier.auditing.flags import FLAGS
from purifier.auditing.judging import Judged
from purifier.auditing.plan import Job
from purifier.auditing.report import Flag
from purifier.data.images import ImageData
from purifier.guards.guard import guard

COUNT = 200
COMPARED = {"black-box-wins", "transfer-wins", "not-monotone", "not-converged", "eot-not-flat"}


def right(*places: range) -> Tensor:
    """Images right in every judgement at these positions and wrong in every one elsewhere, (200,)."""
    shares = torch.zeros(COUNT, dtype=torch.float64)
    for place in places:
        shares[place.start : place.stop] = 1
    return shares


def row(
    spec: str, route: str, shares: Tensor, *, eps: float = 0.1, eot: int | None = None, model="guarded"
) -> PendingRow:
    row = PendingRow(model, Job(read_attack(spec), Threat("linf", eps), route, eot=eot), route)
    judged = Judged(shares, shares, shares, None, None, shares.long(), shares, shares)
    row.add(judged, judged)
    return row


def clean(model="guarded", shares: Tensor | None = None) -> PendingRow:
    row = PendingRow(model)
    shares = right(range(180)) if shares is None else shares
    judged = Judged(shares, shares, shares, None, None, shares.long(), shares, shares)
    row.add(judged, judged)
    return row


EXACT = {"guarded": "exact", "undefended": "exact"}
WHITE = row("pgd", "exact", right(range(60)))


def test_consistent_figures_raise_no_flag():
    rows = [
        clean(),
        WHITE,
        row("fgsm", "exact", right(range(90))),
        row("pgd", "bpda", right(range(100))),
        row("noise", "none", right(range(170))),
        row("pgd", "oblivious", right(range(130))),
        row("pgd", "exact", right(range(150)), eps=0.03),
        clean("undefended"),
        row("pgd", "exact", right(range(2)), model="undefended"),
        row("noise", "none", right(range(120)), model="undefended"),
    ]
    assert compare(rows, EXACT) == []


@pytest.mark.parametrize(
    ("route", "name", "said"),
    [
        ("none", "black-box-wins", "linf 0.1, guarded: 14 of 200 images are fooled by noise and by"),
        ("oblivious", "transfer-wins", "linf 0.1, guarded: 14 of 200 images are fooled by noise and by"),
    ],
)
def test_a_weaker_attacker_must_not_find_more(route, name, said):
    (flag,) = compare([clean(), WHITE, row("noise", route, right(range(46), range(60, 170)))], EXACT)
    assert flag.name == name and flag.evidence.startswith(said)


@pytest.mark.parametrize(("count", "wins"), [(2, False), (3, True)])
def test_one_image_in_a_hundred_is_tolerated(count, wins):
    found = compare([clean(), WHITE, row("noise", "none", right(range(60 - count)))], EXACT)
    assert [flag.name for flag in found] == ["black-box-wins"] * wins


def test_attacks_are_compared_as_a_group():
    rows = [row("noise", "none", right(range(2, 180))), row("noise:draws=5", "none", right(range(2), range(4, 180)))]
    (flag,) = compare([clean(), WHITE, *rows, row("noise:draws=1", "none", right(range(180)))], EXACT)
    assert "4 of 200 images are fooled by noise, noise:draws=5 and" in flag.evidence


def test_images_wrong_when_clean_do_not_count():
    all_wrong = row("noise", "none", right(range(10, 60)))
    assert compare([clean(shares=right(range(10, 180))), WHITE, all_wrong], EXACT) == []


def test_the_undefended_classifier_is_compared_too():
    rows = [
        clean("undefended"),
        row("pgd", "exact", right(range(60)), model="undefended"),
        row("noise", "none", right(range(30)), model="undefended"),
    ]
    (flag,) = compare(rows, {**EXACT, "guarded": "bpda"})  # the purifier's strongest route is none of its
    assert flag.name == "black-box-wins" and "undefended" in flag.evidence


def test_nothing_beats_a_white_box_attack_that_did_not_run():
    blind = row("noise", "none", right(range(10)))
    assert compare([clean(), blind], EXACT) == []
    assert compare([clean(), blind, row("pgd", "bpda", right(range(60)))], EXACT) == []
    broken = row("pgd", "exact", right(range(60)))
    broken.error = "no such luck"
    assert compare([clean(), blind, broken], EXACT) == []


def test_chance_in_a_random_guard_raises_no_flag():
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(COUNT, generator=generator, dtype=torch.float64)

    def judged() -> Tensor:
        return torch.stack([torch.bernoulli(chances, generator=generator) for _ in range(5)]).mean(0)

    rows = [row("noise", "none", judged()), row("pgd", "oblivious", judged())]
    rows += [row(f"pgd:steps={steps}", "exact", judged(), eps=eps) for steps in (40, 80) for eps in (0.1, 0.2)]
    rows += [row("pgd", "exact", judged(), eot=eot) for eot in (1, 10, 20)]
    assert compare([clean(shares=judged()), *rows], EXACT) == []


def test_a_larger_budget_must_not_leave_more_images_right():
    rows = [WHITE, row("pgd", "exact", right(range(80)), eps=0.2), row("pgd", "exact", right(range(9)), eps=0.4)]
    (flag,) = compare([clean(), *rows], EXACT)
    assert flag == Flag("not-monotone", "guarded: 20 more of 200 images are right at linf 0.2 than at linf 0.1")


def test_budgets_are_compared_by_the_attacks_they_share():
    failed = row("noise", "none", right(range(3)), eps=0.2)
    failed.error = "no such luck"
    rows = [WHITE, row("pgd", "exact", right(range(55)), eps=0.2), row("noise", "none", right(range(59))), failed]
    assert compare([clean(), *rows], EXACT) == []


@pytest.mark.parametrize(
    ("weak", "strong", "raises"),
    [
        ("pgd:steps=40", "pgd:steps=80", True),
        ("pgd:steps=40", "pgd:steps=80,restarts=2", True),
        ("pgd:steps=40,restarts=2", "pgd:steps=80,restarts=1", False),
        ("pgd:steps=40", "pgd:steps=80,loss=margin", False),
        ("pgd", "bim:steps=80", False),
    ],
)
def test_more_steps_must_not_change_the_result(weak, strong, raises):
    rows = [clean(), row(weak, "exact", right(range(60))), row(strong, "exact", right(range(40)))]
    found = compare(rows, EXACT)
    assert [flag.name for flag in found] == ["not-converged"] * raises
    assert all(f"{strong} exact linf 0.1 leaves 20 fewer of 200 images right than {weak}" in f.evidence for f in found)


def test_only_the_last_doubling_counts():
    rows = [row(f"pgd:steps={steps}", "exact", right(range(left))) for steps, left in ((80, 60), (10, 150), (40, 61))]
    assert compare([clean(), *rows], EXACT) == []


@pytest.mark.parametrize(("left", "raises"), [((90, 60, 59), False), ((90, 60, 40), True), ((60, 60, 90), False)])
def test_more_draws_must_finally_not_change_the_result(left, raises):
    rows = [row("pgd", "exact", right(range(n)), eot=eot) for eot, n in zip((1, 10, 20), left, strict=True)]
    found = compare([clean(), *rows, WHITE], EXACT)
    assert [flag.name for flag in found] == ["eot-not-flat"] * raises


def test_an_audit_flags_a_misleading_surrogate(classifier, data):
    found = audit(guard(classifier, Reversed()), data, eps=0.1, attacks=("pgd:steps=5", "noise"))
    assert {"transfer-wins", "black-box-wins"} <= {flag.name for flag in found.flags}


def test_an_audit_of_an_honest_guard_raises_no_flag(report):
    assert report.flags == []


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistaken_audit_raises_its_flags_and_is_inconclusive(mistake: Mistake, classifier, data):
    found = audit(**mistake.make(classifier, data), eps=0.1, probes=32)
    assert {flag.name for flag in found.flags} == mistake.flags
    assert not found.conclusive


@pytest.mark.parametrize(
    ("alone", "attacks", "eps", "weak"),
    [
        (False, ("noise",), 0.05, True),
        (False, ("square:queries=150",), 0.05, False),
        (True, ("fgsm",), 0.05, True),
        (True, ("fgsm",), 1.0, False),  # leaves no image right
        (True, (), 0.05, False),
    ],
)
def test_how_much_attack_an_audit_needs(alone, attacks, eps, weak, classifier, onnx_classifier, data, queries_only):
    given = classifier if alone else guard(onnx_classifier, "identity")
    found = audit(given, data, eps=eps, attacks=attacks, probes=8)
    assert [flag.name for flag in found.flags] == ["weak-attacks"] * weak
    assert all(
        "takes more than one step" in flag.evidence or "at least 100 times" in flag.evidence for flag in found.flags
    )


@pytest.mark.parametrize(
    ("attack", "flags"),
    [("pgd:steps=2,step_size=0.00001,random_start=false", {"stronger-self-check"}), ("pgd:steps=20", set())],
)
def test_an_attack_that_does_nothing_is_seen_on_five_images_too(attack, flags, classifier, data):
    pixels, labels = data.batch(range(len(data)))
    right = classifier(pixels).argmax(1) == labels
    places = [int((right & (labels == label)).nonzero()[0]) for label in labels[right].unique()[:5]]
    few = ImageData("five", *data.batch(places))
    found = audit(classifier, few, attacks=(attack,), eps=0.2)
    assert {flag.name for flag in found.flags} == flags


def test_every_flag_is_explained_and_has_a_control():
    controls = [control.flags for control in (*CONTROLS, *MISTAKES)]
    elsewhere = {"nondeterministic", "probe-failed", "certificate-broken"}
    assert set(FLAGS) == COMPARED | elsewhere.union(*controls)
    for name, kind in FLAGS.items():
        assert name == kind.name == name.lower() and " " not in name
        assert all(dataclasses.astuple(kind)) and " et al. " in kind.why


def test_a_flag_survives_json():
    flag = Flag("no-rise", "10 of 64")
    assert Flag(**json.loads(json.dumps(dataclasses.asdict(flag)))) == flag
