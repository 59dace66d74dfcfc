"""Read a pipeline of torchvision's transforms, v1 or v2, step by step, as a ``Preprocessing``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import ConfigError
from .pixels import DTYPES, INTERPOLATIONS, Preprocessing

READ = "ToTensor, PILToTensor, ToImage, ToDtype, ConvertImageDtype, Resize, CenterCrop and Normalize"
TO_FLOATS = ("ToTensor", "MaybeToTensor")
TO_BYTES = ("PILToTensor", "ToImage", "MaybePILToTensor")
SAME_PIXELS = ("ToPureTensor", "Identity")


def read_steps(steps: Sequence[Any]) -> Preprocessing:
    """What a list of torchvision's transforms does to an image.

    Raises
    ------
    ConfigError
        A step is not one of ``READ``, or they come in an order that a ``Preprocessing`` cannot express.
    """
    state = _State()
    for step in steps:
        state.read(step)
    return state.result()


class _State:
    """What the steps read so far have done to an image."""

    def __init__(self) -> None:
        self.white: float | None = None
        """The value of white; None until a step fixes it, when a pipeline without such a step takes pixels."""
        self.dtype: torch.dtype | None = None
        self.found: dict[str, Any] = {}

    def read(self, step: Any) -> None:
        name = type(step).__name__
        if name in TO_FLOATS:
            self.white, self.dtype = 1.0, torch.float32
        elif name in TO_BYTES:
            self.white, self.dtype = 255.0, torch.uint8
        elif name in ("ToDtype", "ConvertImageDtype"):
            self._convert(step, name)
        elif name == "Resize":
            if "crop" in self.found or "resize" in self.found:
                raise ConfigError(f"preprocessing: expected one Resize before CenterCrop, got another; {_advice()}")
            self.found["resize"] = size_of(step.size)
            self.found["interpolation"] = interpolation_of(step.interpolation)
        elif name == "CenterCrop":
            if "crop" in self.found:
                raise ConfigError(f"preprocessing: expected one CenterCrop, got 2; {_advice()}")
            self.found["crop"] = size_of(step.size)
        elif hasattr(step, "mean") and hasattr(step, "std"):
            self._normalise(step)
        elif name not in SAME_PIXELS:
            raise ConfigError(f"preprocessing: cannot read the step {name}; {READ} are read; {_advice()}")

    def _convert(self, step: Any, name: str) -> None:
        dtype = step.dtype
        if dtype not in DTYPES.values():
            raise ConfigError(f"preprocessing: {name} to {dtype}: expected one of {', '.join(DTYPES)}; {_advice()}")
        scaled = getattr(step, "scale", name == "ConvertImageDtype")
        floats = self.dtype is not None and self.dtype.is_floating_point
        if dtype == torch.uint8 and (floats or self.white is None):
            if not scaled or "mean" in self.found:
                raise ConfigError(f"preprocessing: {name} to torch.uint8 cuts off values; {_advice()}")
            self.white = 255.0
        elif scaled and not floats and dtype.is_floating_point:
            self.white = 1.0
        self.dtype = dtype

    def _normalise(self, step: Any) -> None:
        if "mean" in self.found:
            raise ConfigError(f"preprocessing: expected one Normalize, got 2; {_advice()}")
        if self.dtype == torch.uint8:  # torchvision refuses this too, so the floats come from elsewhere
            self.white, self.dtype = None, None
        numbers = Preprocessing(mean=step.mean, std=step.std)
        self.found |= {"mean": numbers.mean, "std": numbers.std}

    def result(self) -> Preprocessing:
        dtype = next((name for name, known in DTYPES.items() if known == self.dtype), "float32")
        return Preprocessing(**self.found, scale=1.0 if self.white is None else self.white, dtype=dtype)


def _advice() -> str:
    return "give purifier.Preprocessing(mean=..., std=..., scale=..., dtype=...), and do the rest before the guard"


def size_of(size: Any) -> int | tuple[int, int] | None:
    """An int for the shorter side, (H, W), or None, from the forms that libraries use."""
    if isinstance(size, Mapping):
        if size.get("height") and size.get("width"):
            return int(size["height"]), int(size["width"])
        return size_of(size.get("shortest_edge"))
    if isinstance(size, list | tuple):
        sides = [int(side) for side in size]
        return (sides[0], sides[1]) if len(sides) == 2 else sides[0] if len(sides) == 1 else None
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def interpolation_of(given: Any) -> str:
    """The name of an interpolation, from torchvision's enum, Pillow's number or a name; bilinear if there is none."""
    given = getattr(given, "value", given)
    if given is None:
        return "bilinear"
    if isinstance(given, int):
        return INTERPOLATIONS[given] if 0 <= given < len(INTERPOLATIONS) else str(given)
    return str(given).lower().removesuffix("-exact")
