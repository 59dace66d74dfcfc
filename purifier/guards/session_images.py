"""What a guarded session takes as images: NumPy arrays and what becomes one, and tensors where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..data.bad_pixels import check_range
from ..data.pixels import Preprocessing
from ..errors import PixelError
from ..foreign_code import explained
from ..onnx.image_input import ImageInput
from ..rejection.policy import Rejection


@dataclass(frozen=True)
class SessionImages:
    """Checks the images of a session: their shape, type and range."""

    image: ImageInput
    preprocessing: Preprocessing
    rejection: Rejection

    def array(self, images: Any) -> np.ndarray[Any, Any]:
        """The images as a checked NumPy array.

        Raises
        ------
        PixelError
            The shape or dtype of the images is wrong, or an image is bad and bad images are not rejected.
        """
        failure = f"{self.image.name}: expected a NumPy array of images, got {type(images).__name__}"
        with explained(failure, PixelError):
            found = np.asarray(images)
        if isinstance(images, list) and found.dtype == np.float64 and self.image.dtype != "uint8":
            found = found.astype(self.image.dtype)  # as ONNX Runtime reads a list of Python floats
        self._check_kind(found.shape, str(found.dtype), f".astype({self.image.dtype!r})")
        if self._has_range():
            # torch does not support negative strides, which reversed channels have.
            self._check_range(torch.tensor(np.ascontiguousarray(found)))
        return found

    def tensor(self, images: Any) -> Tensor:
        """The images as a checked tensor, which shares their memory if they are a tensor or have DLPack."""
        expected = "a torch tensor, a NumPy array or an object with DLPack"
        with explained(f"{self.image.name}: expected {expected}, got {type(images).__name__}", PixelError):
            found = images.detach() if isinstance(images, Tensor) else from_dlpack(images)
        self._check_kind(tuple(found.shape), str(found.dtype).removeprefix("torch."), f".to(torch.{self.image.dtype})")
        if self._has_range():
            self._check_range(found)
        return found.contiguous()

    def _check_kind(self, shape: Sequence[int], dtype: str, conversion: str) -> None:
        name, layout, wanted = self.image.name, self.preprocessing.layout, self.image.shape
        fits = len(shape) == 4 and all(size is None or size == got for size, got in zip(wanted, shape, strict=True))
        if not fits and tuple(shape[1:]) == tuple(wanted[1:]):
            raise PixelError(f"{name}: the classifier takes {wanted[0]} images per call, got {shape[0]}")
        if not fits:
            letters = [letter if size is None else str(size) for letter, size in zip(layout, wanted, strict=True)]
            raise PixelError(
                f"{name}: expected images ({', '.join(letters)}), got {tuple(shape)}; resize them, or set their layout "
                "in preprocessing="
            )
        if dtype != self.image.dtype:
            raise PixelError(f"{name}: expected {self.image.dtype} images, got {dtype}; convert them with {conversion}")

    def _has_range(self) -> bool:
        return self.image.dtype != "uint8" and self.rejection.on_bad_pixels != "reject"

    def _check_range(self, images: Tensor) -> None:
        check_range(self.preprocessing.to_pixels(images), name=self.image.name, clamp=self.rejection.clamps)
