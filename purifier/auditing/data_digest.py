"""What identifies the data of an audit: a hash of all images and labels, and one of each image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..data.images import ImageData
from ..data.pixels import check_pixels
from .report import OWN_ANSWERS


class DataDigest:
    """Hashes of all of ``data``, which is read once, ``batch_size`` images at a time.

    Raises
    ------
    PixelError
        Pixels that are not in [0, 1].
    """

    def __init__(self, data: ImageData, batch_size: int) -> None:
        self._data = data
        self._each: list[bytes] = []
        whole, labels = hashlib.sha256(), hashlib.sha256()
        starts = range(0, len(data), batch_size)
        for part in data.batches([range(start, min(start + batch_size, len(data))) for start in starts]):
            check_pixels(part[0], name=data.name)
            whole.update(_bytes(part[0].float()))
            labels.update(_bytes(part[1]))
            self._each += _of_each(*part)
        self.sha256 = hashlib.sha256(whole.digest() + labels.digest()).hexdigest()

    def has(self, indices: Sequence[int], pixels: Tensor, labels: Tensor) -> bool:
        """Whether images (n, C, H, W) and labels (n,) are those at these positions of the data."""
        return [self._each[index] for index in indices] == _of_each(pixels, labels)

    def facts(self) -> dict[str, Any]:
        """The report's field ``data``."""
        counts = Counter(self._data.labels.tolist())
        return {
            "name": self._data.name,
            "count": len(self._data),
            "sha256": self.sha256,
            "classes": {str(label): counts[label] for label in sorted(counts)},
            **({"framing": framing} if (framing := self._data.framing()) else {}),
            **({"labels": OWN_ANSWERS} if self._data.own_answers else {}),
            **({"skipped": len(self._data.skipped)} if self._data.skipped else {}),
        }


def _of_each(pixels: Tensor, labels: Tensor) -> list[bytes]:
    images = pixels.float().cpu().contiguous()
    return [
        hashlib.blake2b(_bytes(image) + label.to_bytes(8, "little", signed=True), digest_size=16).digest()
        for image, label in zip(images, labels.tolist(), strict=True)
    ]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().numpy().tobytes()
