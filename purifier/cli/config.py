"""``purifier.toml``: options that need not be typed, a table for each command; the command line wins."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from ..errors import ConfigError

FILE = Path("purifier.toml")
"""Read from the folder where a command runs, if it is there."""
OPTION, WITHOUT = "--config", "--no-config"

Commands = Mapping[str, typer.core.TyperCommand]


def with_config(arguments: Sequence[str], commands: Commands) -> tuple[list[str], list[str]]:
    """A command line with the options that a file adds to it, and the names of those.

    The file is the one named before the command (``purifier --config FILE audit``), else ``purifier.toml``.

    Raises
    ------
    ConfigError
        The file cannot be read, names a command or option that does not exist, or gives one a wrong kind of value.
    """
    given, path = _without_choice(list(arguments))
    place = next((place for place, word in enumerate(given) if not word.startswith("-")), None)
    if path is None or place is None or given[place] not in commands:
        return given, []
    tables = _read(path, commands)
    command, typed = commands[given[place]], given[place + 1 :]
    added: list[str] = []
    names: list[str] = []
    for name, value in tables.get(given[place], {}).items():
        option = f"--{name}"
        spellings = next(one.opts for one in _options(command) if option in one.opts)
        if any(word.partition("=")[0] in spellings for word in typed):
            continue
        words = list(_words(option, value))
        added += words
        names += [option] if words else []
    return [*given[: place + 1], *added, *typed], names


def _without_choice(given: list[str]) -> tuple[list[str], Path | None]:
    """The command line without the choice of a file, and the file, if there is one."""
    for place, word in enumerate(given):
        if not word.startswith("-"):
            break
        if word == WITHOUT:
            return given[:place] + given[place + 1 :], None
        name, equals, value = word.partition("=")
        if name == OPTION:
            if not equals and place + 1 == len(given):
                raise ConfigError(f"{OPTION}: expected a TOML file, got nothing; write {OPTION} FILE")
            path = Path(value if equals else given[place + 1])
            if not path.is_file():
                raise ConfigError(f"{OPTION}: no file {path}; `purifier init` writes one")
            return given[:place] + given[place + (1 if equals else 2) :], path
    return given, FILE if FILE.is_file() else None


def _read(path: Path, commands: Commands) -> dict[str, dict[str, Any]]:
    """The tables of a file, checked: command -> option without dashes -> value."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as TOML ({error}); `purifier init` writes a file to start from"
        ) from error
    for name, table in tables.items():
        if name not in commands or not isinstance(table, dict):
            raise ConfigError(f"{path}: expected tables named like commands, got {name!r}{_close(name, commands)}")
        known = [spelling.removeprefix("--") for option in _options(commands[name]) for spelling in option.opts]
        for key, value in table.items():
            if key not in known:
                raise ConfigError(f"{path}: [{name}] has no option {key!r}{_close(key, known)}")
            _check(value, f"{path}: [{name}] {key}")
    return tables


def _close(name: str, known: Any) -> str:
    """What to do about an unknown name."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(sorted(known))}"


def _check(value: object, where: str) -> None:
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, str | bool | int | float) or (isinstance(one, float) and not math.isfinite(one)):
            raise ConfigError(f"{where}: expected a string, a number, true, false, or a list of those, got {one!r}")


def _words(option: str, value: Any) -> Iterator[str]:
    """An option as it is typed."""
    for one in value if isinstance(value, list) else [value]:
        if one is True:
            yield option
        elif one is not False:
            yield f"{option}={one}"


def _options(command: typer.core.TyperCommand) -> list[Any]:
    return [one for one in command.params if one.param_type_name == "option" and one.name != "help"]


def commented(commands: Commands, chosen: Sequence[str]) -> str:
    """The text of a file with all options of some commands, commented out, with their defaults and help."""
    lines = [
        "# Options of purifier's commands. The command line wins. Lines that begin with # change nothing.",
        '# Options that may be repeated take a list: attack = ["fgsm", "pgd:steps=40"].',
    ]
    for name in chosen:
        lines += ["", f"[{name}]"]
        for option in _options(commands[name]):
            lines += ["", *_explained(option), f"# {option.opts[0].removeprefix('--')} = {_default(option)}"]
    return "\n".join(lines) + "\n"


def _explained(option: Any) -> list[str]:
    required = "Required. " if option.required else ""
    return [f"# {line}" for line in f"{required}{option.help or ''}".splitlines()]


def _default(option: Any) -> str:
    """The default as TOML, or an empty value of the right kind."""
    if option.is_flag:
        return "false"
    default = option.default() if callable(option.default) else option.default
    if option.multiple:
        return "[" + ", ".join(f'"{one}"' for one in default or ()) + "]"
    if isinstance(default, int | float):
        return str(default)
    return f'"{"" if default is None else default}"'
