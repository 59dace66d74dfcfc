"""What ``progress`` is told: steps within attacks, never backwards, and its errors end the audit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from audit_helpers import COUNT, audit_quickly, correct, worst
from purifier import Attack
from purifier.attacking.specs import read_attack
from purifier.attacking.threat import Threat
from purifier.auditing import watching
from purifier.auditing.plan import Job
from purifier.auditing.watching import Watch, questions, share_done

FEW = {"probes": 2, "routes": ("exact",)}


@dataclass(frozen=True)
class Asking(Attack):
    """Asks ``times`` times more often than its option ``steps`` says."""

    steps: int = 4
    times: int = 1
    needs: ClassVar[str] = "scores"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def perturb(self, target, pixels, labels, threat, generator):
        for _ in range(self.steps * self.times):
            target(pixels)
        return pixels


@dataclass(frozen=True)
class Library(Asking):
    """An attack of a library, whose own options are in a mapping."""

    steps: None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def __init__(self, options: Mapping[str, object]) -> None:
        object.__setattr__(self, "options", options)


@pytest.fixture
def every_step(monkeypatch):
    monkeypatch.setattr(watching, "EVERY", 0)


@pytest.mark.usefixtures("every_step")
def test_it_is_told_of_every_step_of_an_attack():
    told = []
    audit_quickly(attacks=("pgd:steps=30",), progress=lambda *now: told.append(now), **FEW)
    done = [now[0] for now in told]
    assert done == sorted(done) and done[-1] == told[-1][1] == 1 + 2
    during = [now for now in told if now[2].startswith("pgd:steps=30 exact")]
    assert len({now[0] for now in during}) > 20
    assert told[0] == (0.0, 3, "clean images") and told[-1] == (3.0, 3, "looking for flags")


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("times", [1, 10])
def test_it_never_goes_backwards_nor_past_the_end_of_an_attack(times):
    told = []
    attacks = (Asking(times=times), "fgsm", "pgd:steps=5")
    audit_quickly(attacks=attacks, batch_size=25, progress=lambda *now: told.append(now), probes=2)
    assert {total for _, total, _ in told} == {3 * (1 + 8)}
    done = [now[0] for now in told]
    assert done == sorted(done) and done[-1] == 27
    asking = [now for now, _, what in told if what.startswith("Asking")]
    following = next(now for now, _, what in told if what.startswith("fgsm"))
    assert max(asking[: 4 * times]) < following
    # Each batch begins at its share of the images.
    begun = [now for now, _, what in told if what == "clean images"]
    assert begun == pytest.approx([0, 27 * 25 / COUNT, 27 * 50 / COUNT])


def test_a_later_batch_knows_what_the_first_one_asked():
    told = []
    job = Job(read_attack(Asking(times=10)), Threat("linf", 0.1), "none")
    watch = Watch(lambda *now: told.append(now), [job], images=20, batch_size=10, eot=1)
    seen = []
    for _ in range(2):
        watch.batch(10)
        watch.clean(torch.ones(10))
        watch.job(0, job, 10)
        shares = []
        for _ in range(40):
            watch._query(10)
            expected = watch._work[1].for_each * 10
            shares.append(share_done(watch._asked / expected))
        seen.append(shares)
        watch.judged(job.threat, torch.arange(10), torch.zeros(10))
    assert seen[0][19] > 0.9 and seen[0][39] > 0.98  # it asked ten times more than its options say
    assert seen[1] == pytest.approx([0.9 * step / 40 for step in range(1, 41)])


def test_the_share_of_a_job_grows_and_stays_below_one():
    shares = [share_done(ratio / 10) for ratio in range(500)]
    assert shares == sorted(shares) and shares[0] == 0 and len(set(shares)) == 500 and shares[-1] < 1
    assert share_done(0.5) == pytest.approx(0.45)


@pytest.mark.parametrize(
    ("spec", "route", "expected"),
    [
        ("pgd:steps=40,restarts=3", "exact", 40 * 3 * 5),
        ("pgd:steps=40", "oblivious", 40),
        ("square:queries=200", "none", 200),
        ("apgd-t:steps=10", "exact", 10 * 3 * 5),
        ("fgsm", "exact", 5),
        (Library({}), "none", watching.USUAL_STEPS),
        (Library({"steps": 7, "restarts": 2}), "none", 14),
    ],
)
def test_the_work_of_an_attack_is_guessed_from_its_options(spec, route, expected):
    assert questions(Job(read_attack(spec), Threat("linf", 0.1), route), eot=5) == expected


@pytest.mark.usefixtures("every_step")
def test_it_says_which_images_are_asked_about_and_how_many_are_right():
    told = []
    attacks = ("pgd:steps=20", "fgsm")
    found = audit_quickly(eps=0.1, attacks=attacks, progress=lambda *now: told.append(now[2]), **FEW)
    pattern = re.compile(r"(.+) linf 0.1, (\d+) of 60 images, right so far: (.+)% clean, (.+)% worst case")
    said = [pattern.fullmatch(what).groups() for what in told[1:-1]]
    asked = [int(count) for name, count, _, _ in said if name == "pgd:steps=20 exact"]
    assert asked[0] == COUNT and min(asked) < COUNT  # images that are fooled are done
    assert {float(clean) for _, _, clean, _ in said} == {
        round(100 * correct(found, model="guarded", attack="none") / COUNT, 1)
    }
    after_pgd = next(float(right) for name, _, _, right in said if name == "fgsm exact")
    assert after_pgd == round(100 * correct(found, model="guarded", attack="pgd:steps=20", route="exact") / COUNT, 1)
    assert after_pgd / 100 * COUNT >= worst(found, "guarded", "all") - 0.1


def test_results_do_not_depend_on_being_watched(every_step):
    watched, alone = (
        audit_quickly(attacks=("pgd:steps=3",), progress=progress, **FEW) for progress in (lambda *now: None, None)
    )
    assert [row.result for row in watched.rows] == [row.result for row in alone.rows]
    assert [row.queries_per_image for row in watched.rows] == [row.queries_per_image for row in alone.rows]


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(141), KeyboardInterrupt()])
def test_an_error_of_progress_ends_the_audit_and_is_not_the_attacks(error):
    def fail(done, total, what):
        if done % 1:  # in the middle of an attack
            raise error

    with pytest.raises(type(error)) as raised:
        audit_quickly(attacks=("pgd:steps=20",), progress=fail, **FEW)
    assert raised.value is error
