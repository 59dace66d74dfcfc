"""An oblivious attack cannot query the guard, so it must not stop at the classifier's decision boundary."""

from __future__ import annotations

import purifier


def test_pgd_transfers_better_than_one_step_through_a_filter_that_hides_little() -> None:
    report = purifier.audit(
        purifier.guard("demo", "bit-depth"), "demo:50", attacks=["pgd:steps=10", "fgsm"], routes=["oblivious"], probes=2
    )
    right = {row.attack: row.result.correct for row in report.rows if row.route == "oblivious" and row.result}
    assert right["pgd:steps=10"] < right["fgsm"]


def test_an_oblivious_attack_takes_all_its_steps() -> None:
    report = purifier.audit(purifier.guard("demo", "identity"), "demo:20", attacks=["pgd:steps=7"], probes=2)
    spent = {row.route: row.gradients_per_image for row in report.rows if row.model == "guarded"}
    assert spent["oblivious"] == 7
    assert spent["exact"] < 7
