"""The check of what training has learned, after an epoch: on how many images, how often, and what it looks for.

It is to cost a few percent of training. The recipe ``robust`` attacks each watched image in eleven steps, which takes
as long as training on five; so one image is watched for every 200 that were trained on. Small data sets are checked
after some of the epochs only, and always after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..contracts.purifier import Posterior, Purifier
from ..foreign_code import Attempt
from .recipe import Batch, Recipe

WATCHED = 250
"""Most images in one check, spread evenly over the data."""
LEAST = 64
"""Smallest number of images in a check, if there are that many; fewer cannot show a collapse."""
SHARE = 1 / 200
"""Images watched for each image trained on."""
PART = 32
"""Images in one batch of a check, so that its progress shows."""
INFORMATIVE = 0.01
"""A latent dimension is informative if the variance of its posterior mean over images is more than this share of the
posterior's own variance: a Gaussian channel with less carries less than 0.005 nats."""
COLLAPSED = 0.01
"""With a smaller share of informative latent dimensions than this, the posterior has collapsed."""

EARLY = 300
"""Steps before which an uninformative posterior is no news: it is still to learn."""


def watched(images: int) -> int:
    """How many of so many images are watched in one check."""
    return min(images, WATCHED, max(LEAST, int(SHARE * images)))


def is_checked(epoch: int, epochs: int, images: int) -> bool:
    """Whether an epoch, from 1, ends with a check: those are so far apart that the share of watched images is kept."""
    return epoch == epochs or epoch % _interval(images) == 0


def checks_after(epoch: int, epochs: int, images: int) -> int:
    """The number of checks after later epochs than this one."""
    between = _interval(images)
    return epochs // between - epoch // between + (epoch < epochs and epochs % between > 0)


def _interval(images: int) -> int:
    """Epochs from one check to the next."""
    return max(1, round(watched(images) / (SHARE * images)))


def check(
    recipe: Recipe,
    purifier: Purifier,
    batches: Callable[[], Iterable[Batch]],
    steps: int,
    tell: Callable[[int], None],
) -> tuple[dict[str, float], list[str]]:
    """Figures and warnings about a purifier in evaluation mode, after so many steps.

    ``tell`` gets the number of images done.

    Raises
    ------
    Collapse
        The recipe found that training went wrong.
    """
    figures = recipe.watch(purifier, _told(batches(), tell))
    warnings: list[str] = []
    counts = informative(purifier, (batch.pixels for batch in batches()))
    if counts is not None:
        count, total = counts
        figures = {**figures, "informative_latents": float(count)}
        if count < COLLAPSED * total and steps >= EARLY:
            warnings.append(
                f"posterior collapse: {count} of {total} latent dimensions depend on the image, so the latent tells "
                "the decoder next to nothing; give the KL term less weight, at least at first, or set free_nats"
            )
    return figures, warnings


def informative(purifier: Purifier, parts: Iterable[Tensor]) -> tuple[int, int] | None:
    """How many latent dimensions carry information about the image, and how many there are.

    None if the purifier has no q(z|x), or does not give it as ``Posterior`` says. This is the "active units" of Burda
    et al. 2016 ("Importance weighted autoencoders", section 5.1), measured in the posterior's own variance, so that
    neither the prior nor the scale of the latents matters.

    Parameters
    ----------
    parts
        Pixels (n, C, H, W) of two or more images together.
    """
    if not isinstance(purifier, Posterior):
        return None
    with Attempt(), torch.no_grad():  # another author's method of that name may be something else
        found = [purifier.encode(pixels) for pixels in parts]
        means, log_variances = (torch.cat(tensors).double().flatten(1) for tensors in zip(*found, strict=True))
        if len(means) < 2 or means.shape != log_variances.shape:
            return None
        between, within = means.var(0, correction=0), log_variances.exp().mean(0)
        return int((between > INFORMATIVE * within).sum()), means.shape[1]
    return None


def _told(batches: Iterable[Batch], tell: Callable[[int], None]) -> Iterator[Batch]:
    done = 0
    for batch in batches:
        tell(done)
        yield batch
        done += len(batch.pixels)
    tell(done)
