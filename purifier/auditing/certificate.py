"""The share of images that is certified in an audit: proven, and never mixed with what attacks found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..attacking.threat import Threat
from .statistics import Rate, read_rate


@dataclass(frozen=True)
class Certificate:
    """The images of an audit that the guard has right, and of which is proven that no attack changes that."""

    threat: Threat
    method: Literal["bounds"]
    """``bounds``: those of the purifier, for the guard itself."""
    result: Rate


def read_certificate(values: Mapping[str, Any]) -> Certificate:
    """Read a certificate from JSON; raises ValueError, KeyError or TypeError if it is not one."""
    if values["method"] != "bounds":
        raise ValueError(f"method {values['method']}")
    return Certificate(Threat(**values["threat"]), "bounds", read_rate(values["result"]))
