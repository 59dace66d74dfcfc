"""Adding up outcomes: shards keep what one process keeps, and a failure in one shard never flatters a figure."""

from __future__ import annotations

import random

import pytest
import torch

from purifier.attacking.specs import read_attack
from purifier.attacking.target import Spent
from purifier.attacking.threat import Threat
from purifier.auditing.identity import Identity
from purifier.auditing.judging import Judged
from purifier.auditing.keeping import EACH
from purifier.auditing.outcome import CleanOutcome, Outcome
from purifier.auditing.plan import Job
from purifier.auditing.tally import Tally

BATCH, BATCHES, JOBS = 20, 3, 3


def tally(sequence: str | None = None) -> Tally:
    threat = Threat("linf", 0.1)
    jobs = [
        Job(read_attack(f"pgd:steps={steps}"), threat, "exact", "undefended", sequence) for steps in range(1, JOBS + 1)
    ]
    routes = {"undefended": "exact", "guarded": "exact"}
    return Tally(
        Identity({}, jobs, ["undefended"], routes, True, False, False, BATCH * BATCHES, range(BATCH * BATCHES))
    )


def judged(margins: list[float]) -> Judged:
    found = torch.tensor(margins)
    shares, none = (found > 0).double(), torch.zeros(len(found))
    return Judged(shares, shares.clone(), shares.clone(), None, None, none.long(), found, none)


def clean(count: int) -> CleanOutcome:
    return CleanOutcome(torch.zeros(count).long(), {"undefended": judged([1.0] * count)}, {"undefended": 0.0})


def outcome(start: int, margins: list[float]) -> Outcome:
    count, images = len(margins), torch.rand(len(margins), 1, 2, 2)
    indices = [start + image for image in range(count)]
    held, labels = range(count), torch.zeros(count).long()
    return Outcome(
        torch.arange(count), indices, labels, Spent(), 0.0, [judged(margins)], [0.0], None, held, images, images
    )


@pytest.mark.parametrize("seed", range(40))
def test_from_what_shards_kept_the_examples_of_one_process_can_be_made(seed):
    chosen = random.Random(seed)
    share = chosen.choice([0.02, 0.15, 0.3, 0.5])  # of images that fall to each attack
    outcomes = [
        [
            outcome(batch * BATCH, [-1.0 if chosen.random() < share else chosen.random() for _ in range(BATCH)])
            for _ in range(JOBS)
        ]
        for batch in range(BATCHES)
    ]
    one, merged, purified = tally(), tally(), set()
    for batch in outcomes:
        shard = tally()
        for each in (one, merged, shard):
            each.begin(clean(BATCH))
        for number, found in enumerate(batch):
            one.add(number, found)
            merged.add(number, found.holding(shard.add(number, found)))
        shard.keeper.begin()
        purified |= {example.name for example in shard.keeper.pool}
    for each in (one, merged):
        each.keeper.begin()
    names = [example.name for example in one.keeper.pool]
    assert [example.name for example in merged.keeper.pool] == names
    assert set(names) <= purified
    fallen = [example for example in one.keeper.pool if example.fell]
    held = [example for example in one.keeper.pool if not example.fell]
    assert len(fallen) <= EACH and len(held) <= EACH
    worst = torch.cat([torch.stack([found.judged[0].margins for found in batch]).amin(0) for batch in outcomes])
    assert all(worst[example.index] < 0 for example in fallen)
    assert all(worst[example.index] == pytest.approx(example.margin) for example in held)


def test_what_an_attack_found_before_it_failed_elsewhere_still_counts_in_later_rows():
    found = tally("informed")
    found.begin(clean(4))
    found.add(0, Outcome.failure("out of luck"))
    found.add(1, outcome(0, [1.0] * 4))
    found.begin(clean(4))  # a batch of another shard, where the first attack ran
    found.add(0, outcome(4, [-1.0, -1.0, -1.0, 1.0]))
    later = outcome(7, [1.0])  # the second got the image that was left
    found.add(1, Outcome(**{**vars(later), "at": torch.tensor([3])}))
    first, second = found.rows[1], found.rows[2]
    assert first.error == "out of luck" and second.error is None
    assert second.shares.tolist() == [1, 1, 1, 1, 0, 0, 0, 1]
