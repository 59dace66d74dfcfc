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
from ..data.images import ImageData
from ..data.loading import load_data
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
        The false-positive rate asked for, in (0, 1).
    threshold
        An image is rejected if its score, as float32, is above this, or NaN.
    data
        The DATA spec it was calibrated on.
    count
        How many images that was.
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
    data: ImageData | str,
    *,
    fpr: float = 0.05,
    batch_size: int = 250,
    device: str | torch.device | None = None,
    root: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Calibration:
    """Find the score above which images are rejected, and put it into ``purifier.provenance``.

    Split conformal prediction (Angelopoulos & Bates 2021, section 1; Vovk et al. 2005): of n clean scores the
    ceil((n + 1)(1 - fpr))-th smallest. Fresh clean images, drawn as these were, are then rejected at a rate whose
    expectation is at most ``fpr``. So take images that the purifier was not trained on.

    Parameters
    ----------
    purifier
        Weights and modes stay as they are.
    data
        Clean images or a DATA spec; labels do not matter.
    fpr
        The share of clean images that may be rejected, in (0, 1).
    batch_size
        Images at a time.
    device
        Where to compute the scores; by default where the purifier is.
    root
        Folder of named data sets.
    progress
        Called with images done, images in all and what is being done.

    Raises
    ------
    ConfigError
        An option has an impossible value, or there are too few images for ``fpr``.
    PixelError, DataError, SpecError
        The images have another size than the purifier's, or cannot be read.
    PluginError
        The purifier's scores are not (N,) finite numbers.
    """
    if not isinstance(purifier, Purifier):
        raise ConfigError(
            f"calibrate: expected a purifier, got {type(purifier).__name__}; of a spec, "
            "purifier.load(spec); of a guard, its .purifier"
        )
    if not _is_number(fpr) or not 0 < fpr < 1:
        raise ConfigError(f"fpr: expected a share above 0 and below 1, such as 0.05, got {fpr!r}")
    if type(batch_size) is not int or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    if not isinstance(data, ImageData | str):
        raise ConfigError(f"data: expected ImageData or a DATA spec, got {type(data).__name__}")
    loaded = load_data(data, root=root) if isinstance(data, str) else data
    rank = _rank(len(loaded), fpr)
    scores = _scores(purifier, loaded, batch_size, device, progress)
    quantiles = np.quantile(scores, np.linspace(0, 1, QUANTILES))
    found = Calibration(
        fpr=float(fpr),
        threshold=float(np.sort(scores)[rank - 1]),
        data=loaded.name,
        count=len(loaded),
        quantiles=tuple(map(float, np.maximum.accumulate(quantiles))),  # interpolation can round the wrong way
    )
    purifier.provenance = {
        **purifier.provenance,
        CALIBRATION_KEY: {**dataclasses.asdict(found), "quantiles": [*found.quantiles]},
    }
    return found


def calibration_of(purifier: Purifier) -> Calibration | None:
    """The calibration a purifier brought along, or None.

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
            raise ConfigError(f"calibration: expected its five entries, got {str(stored)[:80]}")
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
            "--data SPEC --fpr 0.05 --out calibrated.safetensors`, or purifier.calibrate(it, data, fpr=0.05)"
        )
    return found.threshold


def rejected(score: Tensor, threshold: float) -> Tensor:
    """Which images are rejected, bool (N,): their score (N,) is above the threshold, or NaN."""
    # float32 on every side, as calibrate and an ONNX graph have it: else a half-precision guard, say, would differ.
    return ~(score.float() <= threshold)


def _rank(count: int, fpr: float) -> int:
    """ceil((n + 1)(1 - fpr)), counted in fractions: floats put 0.29 * 100 below 29."""
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
                f"{name} must score {data.name} with finite numbers, it gave NaN or infinity; check its weights, or "
                "train it again",
                name,
            )
        parts.append(score.float().cpu())
        if progress is not None:
            progress(start + len(pixels), len(data), "scores")
    return torch.cat(parts).double().numpy()


def _copy_on(purifier: Purifier, device: str | torch.device | None) -> tuple[Purifier, torch.device]:
    """A copy in evaluation mode, so that nothing of the caller's has to be put back, and where it is."""
    scorer = copy.deepcopy(purifier).eval()
    tensors = [*scorer.parameters(), *scorer.buffers()]
    if device is None:
        return scorer, tensors[0].device if tensors else torch.device("cpu")
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()  # a meta tensor is made, but holds no number
        return scorer.to(place), place
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"device {str(device)!r} cannot be used: {error}; choose another, such as cpu") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX
