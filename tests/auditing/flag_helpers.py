"""The flags of a guard before anything is attacked."""

from __future__ import annotations

from purifier import Threat
from purifier.attacking.target import is_random
from purifier.auditing.memory_check import flags_of_memory
from purifier.auditing.parts import audited_parts
from purifier.auditing.report import Flag
from purifier.auditing.self_checks import self_check
from purifier.data.images import ImageData
from purifier.guards.guard import guard
from purifier.torch_tools.freezing import freeze

LINF = Threat("linf", 0.1)


def raised(model, filter_, data: ImageData, *threats: Threat, count: int = 32, eot: int = 1) -> list[Flag]:
    return probed(guard(model, filter_), data, *threats, count=count, eot=eot)


def probed(given, data: ImageData, *threats: Threat, count: int = 32, eot: int = 1) -> list[Flag]:
    """The flags of a guard, or of a classifier alone, before anything is attacked."""
    parts = audited_parts(given)
    with freeze(parts.classifier, parts.purifier) as device:
        judgements = 5 if is_random(parts.purifier, data.batch(range(2))[0]) else 1
        setup = parts.setup(device, eot=eot, judgements=judgements)
        memory = list(flags_of_memory(setup, data, threats or (LINF,), count=count))
        return [*memory, *self_check(setup, data, threats or (LINF,), count=count).flags]


def names(flags: list[Flag]) -> set[str]:
    return {flag.name for flag in flags}
