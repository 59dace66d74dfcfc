"""Randomness per image: by seed and index, whatever the batch."""

from __future__ import annotations

import torch

from purifier.seeding import SampleGenerator, mix_seed

LIKE = torch.zeros(1)


def test_draws_follow_the_index_not_the_batch() -> None:
    whole = SampleGenerator(3, range(6)).normal((2, 5), LIKE)
    parts = [SampleGenerator(3, [i]).normal((2, 5), LIKE) for i in (5, 0, 3)]
    assert torch.equal(torch.cat(parts), whole[[5, 0, 3]])
    assert whole.shape == (6, 2, 5)
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 6


def test_other_seeds_and_later_draws_differ() -> None:
    generator = SampleGenerator(3, range(4))
    first, second = generator.uniform((64,), LIKE), generator.uniform((64,), LIKE)
    assert not torch.equal(first, second)
    assert not torch.equal(first, SampleGenerator(4, range(4)).uniform((64,), LIKE))
    assert first.min() >= 0 and first.max() < 1
    assert abs(SampleGenerator(0, range(200)).normal((100,), LIKE).std().item() - 1) < 0.02


def test_a_selection_continues_the_streams_of_the_whole() -> None:
    whole, halved = SampleGenerator(1, range(4)), SampleGenerator(1, range(4))
    whole.normal((3,), LIKE), halved.normal((3,), LIKE)
    expected = whole.normal((3,), LIKE)
    mask = torch.tensor([False, True, False, True])
    assert torch.equal(halved.select(mask).normal((3,), LIKE), expected[mask])
    assert torch.equal(halved.select(torch.tensor([2, 0])).normal((3,), LIKE), expected[[2, 0]])


def test_no_seed_follows_torch_and_leaves_it_alone_until_a_draw() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    quiet = SampleGenerator(None, range(2))
    assert torch.equal(torch.get_rng_state(), state)
    first = quiet.normal((4,), LIKE)
    torch.manual_seed(5)
    assert torch.equal(SampleGenerator(None, range(2)).normal((4,), LIKE), first)
    torch.manual_seed(6)
    assert not torch.equal(SampleGenerator(None, range(2)).normal((4,), LIKE), first)


def test_mixed_seeds_depend_on_parts_and_order() -> None:
    seeds = {
        mix_seed(1, 2),
        mix_seed(2, 1),
        mix_seed("1", 2),
        mix_seed(12),
        mix_seed("pgd", 1),
        mix_seed("fgsm", 1),
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
