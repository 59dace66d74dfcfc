"""Messages name options as Python does; on the command line they are named as they are typed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

IN_PYTHON = re.compile(r" \([^()]*\bin Python\b[^()]*\)")
"""What a message adds for those who call a function."""
ON_THE_COMMAND_LINE = re.compile(r"\b\w+=(?:\([^()]*\)|[^\s()]*) \((--[^()]+) on the command line\)")
"""``feed= (--feed on the command line)``: both forms."""
BEGINNING = re.compile(r"(\w+)(?=: | must | needs )")
# After : ; , . / a name belongs to a spec or a path: robust:eps=0.1, pgd:steps=2,eps=0.1.
NAME = r"(?<![\w.:;,/'\"`=-])({names})"
VALUE = r"=(purifier\.Preprocessing\(([^()]*)\)|'[^']*'(?: or '[^']*')*|[^\s;,()'\"]*[^\s;,.:()'\"])?"
NOT_IN_A_NAME = r"(?![\w.:/'\"`=(-])"
SAID_TWICE = re.compile(r"(--[a-z][a-z-]*)((?: [^\s();]+)?) \(\1\)")


def as_typed(message: str, options: Mapping[str, str], given: Sequence[str] = ()) -> str:
    """A message of a function, for the command line.

    ``on_reject='flag'`` becomes ``--on-reject flag``, ``batch_size must be`` becomes ``--batch-size must be``, and
    ``preprocessing=purifier.Preprocessing(scale=255)`` becomes ``--preprocessing scale=255``.

    Parameters
    ----------
    options
        The options of the command that was typed, by parameter name: ``batch_size`` -> ``--batch-size``. Other names
        stay as they are.
    given
        The words of the command line. What a message repeats of their values, such as the name of a file, stays.
    """
    if not options:
        return message
    found = BEGINNING.match(message)
    if found and found[1] in options:
        message = options[found[1]] + message[found.end() :]
    message = ON_THE_COMMAND_LINE.sub(r"\1", IN_PYTHON.sub("", message))
    names = NAME.format(names="|".join(sorted(options, key=len, reverse=True)))
    values = [word.partition("=")[2] if word.startswith("--") else word for word in given]

    def typed(match: re.Match[str]) -> str:
        begins = [value for value in values if f"{match[1]}=" in value]
        repeated = any(value in message or (match[2] and match[0] in value) for value in begins)
        return match[0] if repeated else _with_value(match, options)

    message = re.sub(names + VALUE, typed, message)
    several = "|".join(name for name in options if "_" in name)  # a single word may be just a word
    if several:
        words = NAME.format(names=several) + NOT_IN_A_NAME
        message = re.sub(words, lambda match: match[0] if match[0] in given else options[match[1]], message)
    return SAID_TWICE.sub(r"\1\2", message)


def _with_value(match: re.Match[str], options: Mapping[str, str]) -> str:
    option, value, fields = options[match[1]], match[2] or "", match[3]
    if value == "True":  # a switch
        return option
    value = value if fields is None else fields.replace(", ", ",")
    return f"{option} {value}".replace("'", "").rstrip()
