"""The option ``scale`` of attacks whose strength or published form depends on the scale of the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from purifier.attacking.target import Target
from purifier.errors import ConfigError

LogitScale = Literal["normalised", "raw"]


@dataclass(frozen=True, kw_only=True)
class ScaleOption:
    """Adds the option to an attack, which asks ``self.seen(target)`` instead of ``target``.

    Parameters
    ----------
    scale
        ``normalised``: each image's logits in its own unit (margins such as ``confidence`` too), so a factor or offset
        of all logits changes nothing. ``raw``: the classifier's own, as published; very large or small ones evade it.
    """

    scale: LogitScale = "normalised"

    def seen(self, target: Target) -> Target:
        """The target with the chosen logits."""
        if self.scale not in get_args(LogitScale):
            raise ConfigError(f"scale must be one of {', '.join(get_args(LogitScale))}, got {self.scale!r}")
        return target.raw() if self.scale == "raw" else target
