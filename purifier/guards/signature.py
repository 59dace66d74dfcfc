"""Finds the image among the arguments of a torch classifier."""

from __future__ import annotations

import inspect

from torch import nn

from ..errors import ConfigError


def find_input(classifier: nn.Module, input: int | str) -> tuple[int | None, str]:
    """The image's position (None if keyword only) and parameter name in the classifier's forward.

    Raises
    ------
    ConfigError
        The classifier takes no such argument.
    """
    try:
        parameters = list(inspect.signature(classifier.forward).parameters.values())
    except ValueError:  # a traced module has no signature
        parameters = [inspect.Parameter("images", inspect.Parameter.VAR_POSITIONAL)]
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    open_ended = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    takes = f"the classifier takes {', '.join(p.name for p in parameters) or 'no argument'}"
    if isinstance(input, int):
        if input < 0 or (input >= len(positional) and not open_ended):
            raise ConfigError(f"input: {takes}, got position {input}; give a position or a name")
        return input, positional[input] if input < len(positional) else f"argument {input}"
    if input in positional:
        return positional.index(input), input
    if not open_ended and input not in [p.name for p in parameters]:
        raise ConfigError(f"input: {takes}, got {input!r}")
    return None, input
