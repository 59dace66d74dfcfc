"""audit(): rows, figures and worst cases match the images, whatever the attack does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import purifier
from audit_helpers import COUNT, PGD, Give, OnlySome, audit_quickly, comparable, correct, rows, worst
from purifier import Threat
from purifier.auditing.audit import audit
from purifier.auditing.statistics import wilson
from purifier.data.loading import load_data
from purifier.guards.guard import guard


def test_every_attack_and_route_has_its_row(report):
    assert [(row.model, row.attack, row.route) for row in report.rows] == [
        ("undefended", "none", None),
        ("guarded", "none", None),
        ("guarded", PGD, "exact"),
        ("guarded", PGD, "bpda"),
        ("undefended", PGD, "exact"),
        ("guarded", PGD, "oblivious"),
        ("guarded", "fgsm", "exact"),
        ("guarded", "fgsm", "bpda"),
        ("undefended", "fgsm", "exact"),
        ("guarded", "fgsm", "oblivious"),
    ]
    assert all(row.result.count == COUNT and row.worst_of_n is None for row in report.rows)
    assert all(row.result.interval == wilson(row.result.correct, COUNT) for row in report.rows)
    (fgsm,) = rows(report, model="guarded", attack="fgsm", route="exact")
    assert (fgsm.gradients_per_image, fgsm.queries_per_image) == (1, 1)
    assert fgsm.options == {"scale": "normalised", "loss": "ce"} and fgsm.threat == Threat("linf", 0.05)


def test_figures_match_a_count_by_hand(report, classifier, data):
    pixels, labels = data.batch(range(COUNT))
    blur = purifier.load("blur")
    clean = classifier(pixels).argmax(1) == labels
    guarded = classifier(blur.purify(pixels)).argmax(1) == labels
    assert correct(report, model="undefended", attack="none") == clean.sum()
    assert correct(report, model="guarded", attack="none") == guarded.sum()
    leaf = pixels.clone().requires_grad_()
    logits = classifier(leaf)
    unit = (logits.amax(1) - logits.mean(1)).detach() / 9
    nn.functional.cross_entropy(logits / unit.unsqueeze(1), labels, reduction="sum").backward(inputs=[leaf])
    attacked = (pixels + 0.05 * leaf.grad.sign()).clamp(0, 1)
    assert (
        correct(report, model="undefended", attack="fgsm") == (clean & (classifier(attacked).argmax(1) == labels)).sum()
    )
    assert (
        correct(report, model="guarded", attack="fgsm", route="oblivious")
        == (guarded & (classifier(blur.purify(attacked)).argmax(1) == labels)).sum()
    )


def test_the_white_box_finds_more_than_the_oblivious_attack(classifier, data):
    report = audit(guard(classifier, "blur:sigma=3"), data, eps=0.1, attacks=(PGD,), routes=("exact", "oblivious"))
    exact, oblivious = (correct(report, model="guarded", attack=PGD, route=r) for r in ("exact", "oblivious"))
    assert exact < oblivious < correct(report, model="guarded", attack="none")


def test_an_oblivious_figure_is_never_called_white_box(report):
    for case in report.worst_case:
        assert ("oblivious" in case.routes) == (case.scope == "all" and case.model == "guarded")
        assert case.result.correct <= min(
            row.result.correct for row in report.rows if row.model == case.model and row.route in (None, *case.routes)
        )
    only = audit_quickly(routes=("oblivious",))
    assert {(case.model, case.scope) for case in only.worst_case} == {
        ("undefended", "all"),
        ("undefended", "white-box"),
        ("guarded", "all"),
    }


def test_the_worst_case_is_per_image_over_all_attacks(classifier, data):
    guarded = guard(classifier, "identity")
    halves = audit(guarded, data, eps=0.1, attacks=(OnlySome(0), OnlySome(1)), routes=("exact",))
    whole = audit(guarded, data, eps=0.1, attacks=("fgsm",), routes=("exact",))
    expected = correct(whole, model="guarded", attack="fgsm")
    assert worst(halves, "guarded", "all") == worst(halves, "undefended", "white-box") == expected
    assert all(row.result.correct > expected for row in halves.rows)


def test_an_attack_cannot_leave_its_budget(classifier, data):
    honest = {
        norm: audit(
            guard(classifier, "identity"), data, norm=norm, eps=0.02, attacks=(Give(lambda x, y: 1e3 - 2e3 * x),)
        )
        for norm in ("linf", "l2")
    }
    pixels, labels = data.batch(range(COUNT))
    for norm, found in honest.items():
        moved = Threat(norm, 0.02).project(1e3 - 2e3 * pixels, pixels)
        right = (classifier(moved).argmax(1) == labels) & (classifier(pixels).argmax(1) == labels)
        assert worst(found, "guarded", "all") == right.sum() > 20


def test_an_image_wrong_when_clean_stays_broken(classifier, data):
    means = classifier.head.weight.detach().view(10, 1, 28, 28)
    repair = Give(lambda pixels, labels: means[labels])
    found = audit(guard(classifier, "identity"), data, eps=1, attacks=(repair,))
    (row,) = rows(found, model="guarded", route="exact")
    assert row.result.correct == correct(found, model="guarded", attack="none") < COUNT


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda pixels, labels: pixels.zero_() + 0, "pixels"),
        (lambda pixels, labels: pixels + labels.zero_().view(-1, 1, 1, 1), "labels"),
    ],
)
def test_an_attack_may_not_change_what_it_was_given(make, name, classifier, data):
    found = audit(guard(classifier, "identity"), data, eps=0.0, attacks=(Give(make), "fgsm"))
    failed = [row for row in found.rows if row.attack.startswith("Give")]
    assert failed and all(
        f"changed its {name} in place" in row.error and f"{name}.clone()" in row.error for row in failed
    )
    clean = {row.model: row.result.correct for row in found.rows if row.attack == "none"}
    assert all(row.result.correct == clean[row.model] for row in found.rows if row.attack == "fgsm")


@pytest.mark.parametrize("filter_", ["blur", "vae:image_shape=1x28x28,channels=4,latent=8,sample=true"])
def test_results_repeat_and_do_not_depend_on_the_batch_size(filter_, classifier):
    torch.manual_seed(0)
    guarded, some = guard(classifier, filter_), load_data("fashion-mnist:test:24")
    few = {"eot": 2, "judgements": 3, "probes": 6}
    first, second, small = (
        audit(guarded, some, eps=0.05, attacks=("pgd:steps=3", "rfgsm"), batch_size=size, seed=4, **few)
        for size in (24, 24, 7)
    )
    assert comparable(first) == comparable(second)
    assert [row.result for row in small.rows] == [row.result for row in first.rows]
    assert [row.gradients_per_image for row in small.rows] == pytest.approx(
        [row.gradients_per_image for row in first.rows]
    )


def test_several_budgets_are_several_threats(classifier, data):
    found = audit(guard(classifier, "identity"), data, eps=(0.02, 0.1), attacks=("fgsm",), routes=("bpda",))
    small, large = rows(found, model="guarded", route="bpda")
    assert (small.threat.eps, large.threat.eps) == (0.02, 0.1)
    assert large.result.correct < small.result.correct
    assert [case.threat.eps for case in found.worst_case if case.model == "guarded"] == [0.02, 0.1]


def test_without_its_strongest_route_nothing_is_called_white_box(classifier, data):
    exact = audit(guard(classifier, "blur"), data, attacks=("fgsm",), routes=("exact",))
    bpda = audit(guard(classifier, "blur"), data, attacks=("fgsm",), routes=("bpda",))
    rounding = audit(guard(classifier, "bit-depth"), data, attacks=("fgsm",), routes=("bpda",))
    for report, scopes in ((exact, {"all", "white-box"}), (bpda, {"all"}), (rounding, {"all", "white-box"})):
        assert {case.scope for case in report.worst_case if case.model == "guarded"} == scopes
    assert (bpda.purifier["surrogate"], rounding.purifier["surrogate"]) == ("identity", "own")
