"""Labels for images that have none: what the classifier itself answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..data.images import ImageData
from ..errors import DataError


@torch.no_grad()
def with_own_answers(
    data: ImageData,
    logits_of: Callable[[Tensor, Sequence[int]], Tensor],
    batch_size: int,
    device: torch.device,
    tell: Callable[[int], None] | None = None,
) -> ImageData:
    """The data as it is if it has labels; otherwise labelled by a classifier's answer to each image.

    Parameters
    ----------
    data
        The images.
    logits_of
        Pixels (n, C, H, W) on ``device``, and their positions in the data -> logits (n, K).
    batch_size, device
        How the classifier is asked.
    tell
        Gets the number of images answered so far, after each batch.

    Raises
    ------
    DataError
        The classifier answers an image with NaN.
    """
    if data.labelled:
        return data
    answers = []
    for start in range(0, len(data), batch_size):
        indices = range(start, min(start + batch_size, len(data)))
        logits = logits_of(data.batch(indices)[0].to(device), indices)
        silent = logits.isnan().any(1).nonzero()
        if len(silent):
            raise DataError(
                f"{data.name}: the classifier answers image {start + int(silent[0])} with NaN, so it has no label; fix "
                "the classifier, or give labels",
                data.name,
            )
        answers.append(logits.argmax(1).cpu())
        if tell is not None:
            tell(indices.stop)
    return data.with_answers(torch.cat(answers))
