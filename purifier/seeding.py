"""Per-image randomness: an image's random numbers depend on the seed and its index, never on its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def mix_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class SampleGenerator:
    """One ``torch.Generator`` per image of a batch, made at the first draw.

    Numbers are drawn on the CPU and then moved, so they are the same on every device.

    Parameters
    ----------
    seed
        Seed of the streams; make one with ``mix_seed``. None draws it from torch's global generator.
    indices
        The images' positions in their data set, length N.
    """

    def __init__(self, seed: int | None, indices: Sequence[int]) -> None:
        self._seed, self._indices = seed, indices
        self._made: list[torch.Generator] | None = None

    def __len__(self) -> int:
        return len(self._indices)

    def select(self, keep: Tensor) -> SampleGenerator:
        """The generators of some images: ``keep`` is a boolean mask (N,) or a vector of positions.

        They are shared, not copied: drawing from the selection advances these images' streams.
        """
        positions = torch.arange(len(self))[keep.detach().cpu()].tolist()
        chosen = SampleGenerator(self._seed, [self._indices[i] for i in positions])
        generators = self._generators()
        chosen._made = [generators[i] for i in positions]
        return chosen

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal numbers, (N, *shape), with the dtype and device of ``like``."""
        out = torch.empty((len(self), *shape))
        for row, generator in zip(out, self._generators(), strict=True):
            row.normal_(generator=generator)
        return out.to(like)

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1), (N, *shape), with the dtype and device of ``like``."""
        out = torch.empty((len(self), *shape))
        for row, generator in zip(out, self._generators(), strict=True):
            row.uniform_(generator=generator)
        return out.to(like)

    def _generators(self) -> list[torch.Generator]:
        if self._made is None:
            seed = int(torch.randint(2**62, ())) if self._seed is None else self._seed
            self._made = [torch.Generator().manual_seed(mix_seed(seed, int(i))) for i in self._indices]
        return self._made
