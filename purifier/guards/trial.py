"""Two images through a classifier when its guard is made, so that rejection that cannot work fails then."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn

from ..contracts.purifier import Purifier, usual_shape_of
from ..data.pixels import Preprocessing
from ..foreign_code import Attempt
from ..output import Output
from ..rejection.policy import Rejection
from ..torch_tools.copying import unused_copy
from ..torch_tools.freezing import evaluating

SIDE = 224
"""Height and width to try if the purifier takes any size; most classifiers that do not fix theirs take it."""


@torch.no_grad()
def try_replacing(
    classifier: nn.Module,
    purifier: Purifier,
    preprocessing: Preprocessing,
    place: int | str,
    rejection: Rejection,
    output: Output,
) -> None:
    """Replace a classifier's answer for two black images, if ``rejection`` replaces answers.

    They go to a copy in evaluation mode. If the classifier fails on them, nothing is known: it may need other
    arguments or images of another size.

    Parameters
    ----------
    place
        The image's position among the classifier's arguments, 0, or its parameter name.

    Raises
    ------
    PurifierError
        As for ``Rejection.replace``.
    """
    weight = next((one for one in chain(classifier.parameters(), classifier.buffers())), torch.empty(0))
    copied = unused_copy(classifier)
    if not rejection.replaces or weight.is_meta or copied is classifier:
        return
    channels = len(preprocessing.mean) or len(preprocessing.std) or 3
    pixels = torch.zeros(2, *(usual_shape_of(purifier) or (channels, SIDE, SIDE)), device=weight.device)
    images = preprocessing.to_classifier(pixels)
    if images.is_floating_point() and weight.is_floating_point():
        images = images.to(weight.dtype)
    given: Any = None
    with torch.random.fork_rng(devices=[]), Attempt() as attempt:
        evaluating(copied)
        given = copied(**{place: images}) if isinstance(place, str) else copied(images)
    if attempt.error is None:
        which = torch.ones(2, dtype=torch.bool, device=weight.device)
        own = next((one.dtype for one in purifier.parameters()), pixels.dtype)
        rejection.replace(given, which, purifier, pixels.to(own), output)
