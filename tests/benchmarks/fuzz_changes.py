"""Random changes of bytes, JSON and text, for ``fuzz.py``."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

ODD: tuple[Any, ...] = (None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, -0.5, 1e300, math.nan, math.inf, "", "x", [], {})
ODD_TEXTS = ("", "-1", "0", "1e309", "nan", "inf", "-inf", "9" * 5000, "1e9", "2147483648", "0x10", "1_0", "١", "\0")
ODD_TEXTS += ("none", "true", "x" * 300, "/dev/null", "..", "\ud800", "🙂", "1,2", "=", ":", "a=b", "%s", "{}")


def bytes_changed(content: bytes, chance: random.Random, ways: int = 5) -> bytes:
    """Some bytes flipped, set to what counts and lengths are unlikely to be, cut or doubled; the last two in 5 ways."""
    made = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        # Headers are at either end of a file.
        at = chance.choice(
            (chance.randrange(len(made)), chance.randrange(min(64, len(made))), -1 - chance.randrange(64))
        )
        at = max(-len(made), at) % len(made)
        way = chance.randrange(ways)
        if way == 0:
            made[at] ^= 1 << chance.randrange(8)
        elif way == 1:
            made[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\x80"))
        elif way == 3:
            del made[at : at + chance.choice((1, 8, len(made) // 2))]
        elif way == 4:
            made[at:at] = made[at : at + 40]
        else:
            made[at] = chance.randrange(256)
        made = made or bytearray(b"\0")
    return bytes(made)


def json_changed(value: Any, chance: random.Random) -> Any:
    """The same JSON with something at a random place replaced, removed or nested deeply."""
    if isinstance(value, Mapping) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        made = dict(value)
        if chance.random() < 0.1:
            del made[key]
        else:
            made[key] = json_changed(value[key], chance)
        return made
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        return [*value[:at], json_changed(value[at], chance), *value[at + 1 :]]
    return chance.choice(ODD)


def text_changed(text: str, chance: random.Random) -> str:
    """A spec with a part replaced, cut out or doubled."""
    at, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
    way = chance.randrange(4)
    if way == 0 and "=" in text:
        place = text.index("=", chance.choice([at for at, letter in enumerate(text) if letter == "="])) + 1
        return text[:place] + chance.choice(ODD_TEXTS) + text[len(text) - len(text[place:].partition(",")[2]) :]
    if way == 1:
        return text[:at] + text[end:]
    if way == 2:
        return text[:end] + text[at:]
    return text[:at] + chance.choice((*ODD_TEXTS, *":,=@-. ")) + text[end:]
