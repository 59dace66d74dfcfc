"""Where the windows of convolutions and poolings lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from ..node import Node


@dataclass(frozen=True)
class Windows:
    """Strides, dilations and padding, a number for each spatial axis; ``pads`` are beginnings, then ends."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]
    auto_pad: str

    @classmethod
    def read(cls, node: Node, kernel: Sequence[int]) -> Windows:
        rank = len(kernel)
        return cls(
            list(kernel),
            node.integers("strides") or [1] * rank,
            node.integers("dilations") or [1] * rank,
            node.integers("pads") or [0] * (2 * rank),
            node.text("auto_pad", "NOTSET") or "NOTSET",
        )

    @property
    def extents(self) -> list[int]:
        """How far a window reaches, dilation included."""
        return [dilation * (size - 1) + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True)]

    def pads_for(self, sizes: Sequence[int]) -> list[int]:
        """The padding for an image of these sizes."""
        if self.auto_pad == "NOTSET":
            return self.pads
        if self.auto_pad == "VALID":
            return [0] * (2 * len(self.kernel))
        needed = [
            max(0, (-(-size // stride) - 1) * stride + extent - size)
            for size, stride, extent in zip(sizes, self.strides, self.extents, strict=True)
        ]
        smaller, larger = [pad // 2 for pad in needed], [pad - pad // 2 for pad in needed]
        return smaller + larger if self.auto_pad == "SAME_UPPER" else larger + smaller

    def counts(self, sizes: Sequence[int], pads: Sequence[int], *, ceil: bool) -> list[int]:
        """How many windows lie along each axis; with ``ceil``, also one that begins in the image but ends later."""
        rank, found = len(self.kernel), []
        for axis, (size, extent, stride) in enumerate(zip(sizes, self.extents, self.strides, strict=True)):
            room = size + pads[axis] + pads[axis + rank] - extent
            count = -(-room // stride) + 1 if ceil else room // stride + 1
            if ceil and (count - 1) * stride >= size + pads[axis]:
                count -= 1
            found.append(count)
        return found


def is_symmetric(pads: Sequence[int]) -> bool:
    return list(pads[: len(pads) // 2]) == list(pads[len(pads) // 2 :])


def surrounded(given: Tensor, pads: Sequence[int], fill: float = 0.0) -> Tensor:
    """An image with a border; ``pads`` are beginnings, then ends."""
    rank = len(pads) // 2
    sides = [side for axis in reversed(range(rank)) for side in (pads[axis], pads[axis + rank])]
    return functional.pad(given, sides, value=fill) if any(sides) else given
