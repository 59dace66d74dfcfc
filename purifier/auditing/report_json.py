"""Reads and writes parts of a report's JSON: the fields of each ``result`` are merged into its row."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..attacking.threat import Threat
from ..errors import FileError
from .detection import read_detection
from .report_versions import SCHEMA_VERSION, upgraded
from .statistics import Rate, read_rate

RATES = ("worst_of_n", "majority", "right", "rejected")
"""Fields of rows and worst cases that hold a rate; the first two are in both."""
CERTIFICATES = "certificates.json"
PURIFIER_FACTS = {"plugin", "surrogate", "file"}


def read_report(path: Path) -> dict[str, Any]:
    """The JSON of a report of any version, in today's schema.

    Raises
    ------
    FileError
        The file is missing, is not a report, or has an unknown schema version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        advice = "create a report with `purifier audit --out`"
        if any(path.parent.glob("audit*.journal")):
            advice = "the audit in this folder is not at its end: give its command again, and it goes on"
        elif path.with_name(CERTIFICATES).exists():
            advice = f"the folder holds {CERTIFICATES} of `purifier certify`, not a report of `purifier audit`"
        raise FileError(f"cannot read {path}: {error.strerror or error}; {advice}", path) from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not JSON ({error}); run the audit again", path) from error
    version = found.get("schema_version") if isinstance(found, dict) else None
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise FileError(
            f"{path}: expected a report of schema version 1 to {SCHEMA_VERSION}, got {version!r}; "
            "read it with the version of purifier that wrote it, or run the audit again",
            path,
        )
    try:
        return upgraded(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{path} is not a complete report ({error!r}); run the audit again", path) from error


def flat(entry: dict[str, Any]) -> dict[str, Any]:
    """A row or worst case as JSON holds it."""
    result = entry.pop("result") or dict.fromkeys(field.name for field in dataclasses.fields(Rate))
    return {**entry, **result}


def nested(entry: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row or worst case from JSON; raises ValueError, KeyError or TypeError if it is not one."""
    rates = {field.name: entry.pop(field.name) for field in dataclasses.fields(Rate)}
    return {
        **entry,
        "threat": entry["threat"] and Threat(**entry["threat"]),
        "result": None if rates["count"] is None else read_rate(rates),
        **{name: entry[name] and read_rate(entry[name]) for name in RATES if name in entry},
        **({"detection": entry["detection"] and read_detection(entry["detection"])} if "attack" in entry else {}),
    }


def check_facts(found: Mapping[str, Any]) -> None:
    """Raise ValueError or KeyError for an upgraded report whose parts do not fit together."""
    if not found["rows"] or not set(found["purifier"] or PURIFIER_FACTS) >= PURIFIER_FACTS:
        raise ValueError("no rows, or no purifier")
    if not {"description", "sha256"} <= set(found["classifier"]):
        raise ValueError("no classifier")
    kinds = {"fpr": float, "threshold": float, "data": str, "count": int}
    calibration, names, command = found["calibration"], found["class_names"], found.get("command")
    if calibration is not None and {name: type(value) for name, value in calibration.items()} != kinds:
        raise ValueError(f"calibration {calibration}")
    if any((row.get("detection") or {}).get("held") and not calibration for row in found["rows"]):
        raise ValueError("images rejected without a calibration")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"class names {names}")
    if command is not None and not (isinstance(command, list) and all(isinstance(word, str) for word in command)):
        raise TypeError(f"command: expected a list of words, got {command!r}")
