"""Rejection by score: a threshold calibrated on clean data to a false-positive rate."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contracts.purifier import Purifier, check_scores, dtype_of, image_shape_of
from ..data.given import Data, read_data
from ..data.images import ImageData
from ..data.pixels import check_pixels
from ..errors import CheckpointError, ConfigError, PluginError
from ..foreign_code import explained

CALIBRATION_KEY = "calibration"
QUANTILES = 101
FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Calibration:
    """A purifier's threshold and the distribution of its scores on clean images.

    Parameters
    ----------
    fpr
        The requested false-positive rate, in (0, 1).
    threshold
        An image is rejected if its score, as float32, is above this, or NaN.
    data
        The DATA spec it was calibrated on.
    count
        How many images it was calibrated on.
    quantiles
        101 evenly spaced quantiles of the clean scores, 0% to 100%.
    """

    fpr: float
    threshold: float
    data: str
    count: int
    quantiles: tuple[float, ...]

    def __post_init__(self) -> None:
        checks = {
            "fpr": _is_number(self.fpr) and 0 < self.fpr < 1,
            "threshold": _is_number(self.threshold),
            "data": isinstance(self.data, str),
            "count": type(self.count) is int and self.count > 0,
            "quantiles": isinstance(self.quantiles, tuple)
            and len(self.quantiles) == QUANTILES
            and all(map(_is_number, self.quantiles))
            and list(self.quantiles) == sorted(self.quantiles),
        }
        for name, holds in checks.items():
            if not holds:
                raise ConfigError(f"calibration: {name!r} cannot be {str(getattr(self, name))[:80]}")


def calibrate(
    purifier: Purifier,
    data: Data,
    *,
    fpr: float = 0.05,
    batch_size: int = 250,
    device: str | torch.device | None = None,
    root: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Calibration:
    """Find the score above which images are rejected, and store it in ``purifier.provenance``.

    Split conformal prediction (Angelopoulos & Bates 2021, section 1; Vovk et al. 2005): of n clean scores the
    ceil((n + 1)(1 - fpr))-th smallest. New clean images from the same distribution are then rejected at a rate whose
    expectation is at most ``fpr``. So use images that the purifier was not trained on.

    Parameters
    ----------
    purifier
        Its weights and modes do not change.
    data
        Clean images: a DATA spec, ``ImageData``, images, ``(images, labels)``, a torch Dataset or a DataLoader; labels
        do not matter.
    fpr
        The fraction of clean images that may be rejected, in (0, 1).
    batch_size
        Images per batch.
    device
        Device for computing the scores; by default the purifier's.
    root
        Folder with named data sets.
    progress
        Called with the images done, the total and the name of the stage.

    Raises
    ------
    ConfigError
        An option has an impossible value, or there are too few images for ``fpr``.
    PixelError, DataError, SpecError
        The images do not have the purifier's size, or cannot be read.
    PluginError
        The purifier's scores are not (N,) finite numbers.
    """
    if not isinstance(purifier, Purifier):
        raise ConfigError(
            f"calibrate: expected a purifier, got {type(purifier).__name__}; for a spec, pass purifier.load(spec); "
            "for a guard, its .purifier"
        )
    if not _is_number(fpr) or not 0 < fpr < 1:
        raise ConfigError(f"fpr: expected a rate above 0 and below 1, such as 0.05, got {fpr!r}")
    if type(batch_size) is not int or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    loaded = read_data(data, root=root)
    rank = _rank(len(loaded), fpr)
    scores = _scores(purifier, loaded, batch_size, device, progress)
    quantiles = np.quantile(scores, np.linspace(0, 1, QUANTILES))
    found = Calibration(
        fpr=float(fpr),
        threshold=float(np.sort(scores)[rank - 1]),
        data=loaded.name,
        count=len(loaded),
        quantiles=tuple(map(float, np.maximum.accumulate(quantiles))),  # interpolation can round one below the last
    )
    purifier.provenance = {
        **purifier.provenance,
        CALIBRATION_KEY: {**dataclasses.asdict(found), "quantiles": [*found.quantiles]},
    }
    return found


def calibration_of(purifier: Purifier) -> Calibration | None:
    """The calibration stored with a purifier, or None.

    Raises
    ------
    CheckpointError
        Its metadata is damaged.
    """
    stored: Any = purifier.provenance.get(CALIBRATION_KEY)
    if stored is None:
        return None
    try:
        if not isinstance(stored, dict) or not isinstance(stored.get("quantiles"), list | tuple):
            raise ConfigError(f"calibration: expected five entries, got {str(stored)[:80]}")
        return Calibration(**{**stored, "quantiles": tuple(stored["quantiles"])})
    except (ConfigError, TypeError) as error:
        file = purifier.provenance.get("file", type(purifier).__name__)
        raise CheckpointError(
            f"{file}: its metadata is damaged: {error}; calibrate it again: `purifier calibrate CKPT --data SPEC "
            "--fpr 0.05`",
            file,
        ) from error


def threshold_of(purifier: Purifier) -> float:
    """The score above which a purifier's images are rejected.

    Raises
    ------
    ConfigError
        The purifier is not calibrated.
    CheckpointError
        Its metadata is damaged.
    """
    found = calibration_of(purifier)
    if found is None:
        raise ConfigError(
            f"{type(purifier).__name__} has no threshold: it is not calibrated; run `purifier calibrate PURIFIER "
            "--data SPEC --fpr 0.05 --out calibrated.safetensors`, or call purifier.calibrate(purifier, data, fpr=0.05)"
        )
    return found.threshold


def rejected(score: Tensor, threshold: float) -> Tensor:
    """Which images are rejected, bool (N,): their score (N,) is above the threshold, or NaN."""
    # In float32, like calibrate and ONNX graphs; otherwise a half-precision guard, for example, would differ.
    return ~(score.float() <= threshold)


def _rank(count: int, fpr: float) -> int:
    """ceil((n + 1)(1 - fpr)), computed with fractions: in floats, 0.29 * 100 is below 29."""
    share = Fraction(str(float(fpr)))
    rank = math.ceil((count + 1) * (1 - share))
    if rank > count:
        raise ConfigError(
            f"fpr {fpr:g} needs at least {math.ceil((1 - share) / share)} clean images, got {count}; give more "
            "images or a higher fpr"
        )
    return rank


@torch.no_grad()
def _scores(
    purifier: Purifier,
    data: ImageData,
    batch_size: int,
    device: str | torch.device | None,
    progress: Callable[[int, int, str], None] | None,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    shape, name = image_shape_of(purifier), type(purifier).__name__
    scorer, place = _copy_on(purifier, device)
    parts = []
    for start in range(0, len(data), batch_size):
        pixels, _ = data.batch(range(start, min(start + batch_size, len(data))))
        check_pixels(pixels, name=data.name, shape=shape)
        failure = f"{name} fails to score images {tuple(pixels.shape)} of {data.name}"
        with explained(failure, partial(PluginError, name=name)):
            score = scorer.score(pixels.to(place, dtype_of(scorer)))
        check_scores(scorer, score, pixels)
        if not score.float().isfinite().all():
            raise PluginError(
                f"{name} must return finite scores for {data.name}, got NaN or infinity; check its weights, or train "
                "it again",
                name,
            )
        parts.append(score.float().cpu())
        if progress is not None:
            progress(start + len(pixels), len(data), "scores")
    return torch.cat(parts).double().numpy()


def _copy_on(purifier: Purifier, device: str | torch.device | None) -> tuple[Purifier, torch.device]:
    """A copy in evaluation mode, so the caller's purifier does not change, and the copy's device."""
    scorer = copy.deepcopy(purifier).eval()
    tensors = [*scorer.parameters(), *scorer.buffers()]
    if device is None:
        return scorer, tensors[0].device if tensors else torch.device("cpu")
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()  # .item() fails on the meta device, which holds no values
        return scorer.to(place), place
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"device {str(device)!r} cannot be used: {error}; choose another, such as cpu") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX
