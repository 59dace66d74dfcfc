"""What one bad image does to a batch of an exported file, for ``zoo_table.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from purifier.errors import PixelError
from purifier.foreign_code import Attempt

TOLERANCE = 1e-6
"""Of an output's scale. The bad image is black to the purifier and to the classifier, so nothing else may show."""
BAD = 0
Values = Mapping[str, Any]


def bad_image_problem(
    guarded: Any,
    exported: Callable[[Values], Values],
    feed: Values,
    as_before: Callable[[Values, Values], str],
) -> str:
    """What is wrong with the answers for a batch whose first image has a NaN, or nothing.

    Parameters
    ----------
    guarded
        The session that was exported; its ``run`` must raise an error that names the image.
    exported
        Runs the exported file.
    feed
        A batch of good images, and the values of other inputs.
    as_before
        What differs between the others' answers with a good image in its place and with the bad one, or nothing.
    """
    images = feed[guarded.input]
    if not np.issubdtype(images.dtype, np.floating):
        return ""  # uint8 has no bad values
    spoilt, black = images.copy(), images.copy()
    spoilt[(BAD, *(size // 2 for size in images.shape[1:]))] = np.nan
    black[BAD] = _black(guarded, images)
    with Attempt() as attempt:
        guarded.run(None, {**feed, guarded.input: spoilt})
    if not isinstance(attempt.error, PixelError) or f"NaN in image {BAD} of {len(images)}" not in str(attempt.error):
        return f"the session raises {attempt.error!r} for a bad image"
    good, other, found = (exported({**feed, guarded.input: batch}) for batch in (images, black, spoilt))
    answered = [name for name in found if name != guarded.input and rows(found[name], len(images)) is not None]
    if not answered:
        return "no output has a row per image"
    for name in answered:
        mine = rows(found[name], len(images))
        if depends(good[name], other[name], len(images)) and not is_blank(mine[BAD]):
            return f"{name} is {str(mine[BAD])[:80]} for a bad image"
        beside = rows(other[name], len(images))
        for place in range(len(images)):
            if place != BAD and not same(beside[place], mine[place]):
                return f"{name} of image {place} is not as beside a black image"
    if len(images) == 1:
        return ""
    before, after = ({name: rows(run[name], len(images))[BAD + 1 :] for name in answered} for run in (good, found))
    return as_before(before, after)


def _black(guarded: Any, images: np.ndarray[Any, Any]) -> Any:
    """A black image in the classifier's format."""
    way = guarded.preprocessing
    pixels = torch.zeros_like(way.to_pixels(torch.from_numpy(images[:1])))
    return way.to_classifier(pixels, torch.from_numpy(images).dtype).numpy()[0]


def rows(value: Any, count: int) -> Any:
    """An output by image, or None if it has no row per image."""
    if isinstance(value, list):
        return value if len(value) == count else None
    return value if isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == count else None


def depends(good: Any, other: Any, count: int) -> bool:
    """Whether the answer for an image is known to depend on its pixels."""
    return not same(rows(good, count)[BAD], rows(other, count)[BAD])


def is_blank(value: Any) -> bool:
    """Whether it is no answer: NaN, -1, the largest unsigned number, an empty string, or a map or list of these."""
    if isinstance(value, Mapping):
        return all(is_blank(entry) for entry in value.values())
    array = np.asarray(value)
    if array.dtype == bool:
        return True  # has no value for it
    if np.issubdtype(array.dtype, np.floating):
        return bool(np.isnan(array).all())
    if np.issubdtype(array.dtype, np.unsignedinteger):
        return bool((array == np.iinfo(array.dtype).max).all())
    return bool((array == (-1 if np.issubdtype(array.dtype, np.integer) else "")).all())


def same(expected: Any, found: Any) -> bool:
    if isinstance(expected, Mapping):
        return set(expected) == set(found) and all(same(expected[key], found[key]) for key in expected)
    wanted, got = np.asarray(expected), np.asarray(found)
    if not np.issubdtype(wanted.dtype, np.floating):
        return np.array_equal(wanted, got)
    scale = max(float(np.abs(wanted).max(initial=0)), 1e-6)
    return wanted.shape == got.shape and np.allclose(wanted, got, rtol=0, atol=TOLERANCE * scale)
