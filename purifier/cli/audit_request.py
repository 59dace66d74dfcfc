"""What is asked of ``purifier audit``: budgets, attacks, gates, and whether its report can be written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic import check_writable
from ..errors import ConfigError, FileError, OutputError
from ..specs import number

if TYPE_CHECKING:
    from ..auditing.gates import Gate

CLEAN_ONLY = "none"


def check_request(
    attack: list[str] | None, preset: str | None, path: Path, replaces: bool, fail_under: Sequence[str] | None
) -> list[Gate]:
    """The gates; raise for options that contradict each other, and for a report that could not be written."""
    from .gates import read_gate

    if attack and CLEAN_ONLY in attack and (len(attack) > 1 or preset):
        raise ConfigError(f"--attack {CLEAN_ONLY} evaluates clean images only; leave out other attacks and --preset")
    check_writable(path.parent)
    if path.exists() and not replaces:
        raise OutputError(
            f"{path} already has the report of {_found_in(path)}; replace it by --overwrite, or choose another --out",
            path,
        )
    gates = [read_gate(text) for text in fail_under or ()]
    if attack == [CLEAN_ONLY] and any(gate.needs_attacks for gate in gates):
        raise ConfigError("--fail-under needs an attack; add one, or leave out --fail-under")
    for gate in gates:
        gate.check_attacks(attacks_in(attack, preset))
    return gates


def attacks_in(attack: list[str] | None, preset: str | None) -> set[str]:
    """The names and the specs of all attacks that were asked for."""
    from ..auditing.presets import DEFAULT_PRESET, names_in

    named = set(attack or ()) | {one.partition(":")[0] for one in attack or ()}
    if preset or not attack:
        named |= names_in(preset or DEFAULT_PRESET)
    return named - {CLEAN_ONLY}


def _found_in(path: Path) -> str:
    """What a report that is there is about, so that its owner knows it again."""
    from ..auditing.report import AuditReport

    try:
        found = AuditReport.load(path)
    except FileError:
        return "an earlier audit, which cannot be read"
    about = f"{found.data['name']}, {', '.join(map(str, found.threats))}"
    return f"an audit of {found.created} ({found.classifier['description']}, {about})"


def read_eps(text: str, name: str = "eps") -> float:
    """``0.1`` or ``8/255`` -> a size in pixel units; errors call it ``name``."""
    try:
        return number(text)
    except ValueError:
        raise ConfigError(f"{name}: expected a number such as 0.1 or 8/255, got {text!r}") from None
