"""Everything that an attack asks of a purifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..contracts.purifier import LatentSpace, Purifier
from ..seeding import SampleGenerator
from ..torch_tools.channels_last import Ask


def everything_asked(purifier: Purifier) -> Ask:
    """All that attacks ask of a purifier."""

    def ask(pixels: Tensor) -> Sequence[Tensor]:
        noise = purifier.draw(pixels, SampleGenerator(0, range(len(pixels))))
        found = [*purifier.purify_and_score(pixels, noise), purifier.purify(pixels, noise)]
        if type(purifier).surrogate is not Purifier.surrogate:
            found.append(purifier.surrogate(pixels, noise))
        if isinstance(purifier, LatentSpace):
            found.append(purifier.decoded(purifier.latent_of(pixels)))
        return found

    return ask
