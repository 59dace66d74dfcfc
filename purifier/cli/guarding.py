"""The guard of the commands that take one, or a classifier alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .options import Reading

NO_PURIFIER = "none"
AS_THE_GUARD = Reading(preprocessing=None, input=None, output=None, output_kind="logits", feed=None)
NO_POLICY = {"on_reject": "ignore", "abstain": None, "on_bad_pixels": "raise"}


def guarded(model: Any, purifier: str, policy: Mapping[str, Any], reading: Reading) -> tuple[Any, Reading]:
    """The guard and how it reads, which it knows; or with ``--purifier none`` the classifier."""
    from ..guards.guard import guard

    if purifier != NO_PURIFIER:
        return guard(model, purifier, **policy, **reading), AS_THE_GUARD
    if policy != NO_POLICY:
        raise ConfigError(
            "--on-reject, --abstain and --on-bad-pixels need a guard, but --purifier is none; leave them out"
        )
    return model, reading
