"""Converts reports that earlier versions wrote to today's schema."""

from __future__ import annotations

from typing import Any

SCHEMA_VERSION = 10
"""2 added detection and calibration; 3 flags, presets, sequences, majorities; 4 renamed ``refused`` to ``rejected``; 5
added rejecting guards, classifiers alone, what exactly was audited, and whether an attack took several steps; 6 the
purifier's spec and whether it is random, what each attack needs, and the precision of the gradient check; 7 renamed
``accuracy`` to ``share``, because agreement is none, and added what a guard does with bad pixels; 8 added the names of
the classes; 9 reports of a part of the images; 10 certificates."""


def upgraded(found: dict[str, Any]) -> dict[str, Any]:
    """Convert a report's JSON to ``SCHEMA_VERSION``; ``found`` has that version or an earlier one.

    Anything that an earlier version did not record is filled in as missing: no flags, looked for on 0 images.
    """
    version = found["schema_version"]
    rows, cases = list(found["rows"]), list(found["worst_case"])
    if version < 2:
        rows = [{**row, "scores_per_image": 0.0, "detection": None} for row in rows]
        found = {**found, "calibration": None}
    if version < 3:
        rows = [{**row, **_settings_of(row, found), "majority": None} for row in rows]
        cases = [{**case, "majority": None} for case in cases]
        found = {**found, "preset": None, "left_out": [], "flags": [], "probes": 0}
    if version < 4:
        rows = [{**row, "detection": _with_rejected(row["detection"])} for row in rows]
    if version < 5:
        # Earlier audits judged every guard as one that ignores scores.
        rows = [{**row, "right": None, "rejected": None} for row in rows]
        found = {**found, "on_reject": "ignore", "abstain": None, "classifier": _classifier(found["classifier"])}
        cases = [{**case, "multi_step": any(_takes_steps(row, case) for row in rows)} for case in cases]
        found["data"] = {**found["data"], "sha256": None, "classes": None}
    if version < 6:
        rows = [{**row, "needs": None} for row in rows]
        purifier = found["purifier"]
        found = {**found, "purifier": purifier and {**purifier, "spec": None, "random": None}, "gradient_check": None}
    if version < 7:
        rows, cases = _with_shares(rows), _with_shares(cases)
        found = {**found, "on_bad_pixels": None}
    if version < 8:
        found = {**found, "class_names": None}
    if version < 9:
        found = {**found, "partial": None}
    if version < 10:
        found = {**found, "certificates": []}
    return {**found, "schema_version": SCHEMA_VERSION, "rows": rows, "worst_case": cases}


def _with_shares(found: Any) -> Any:
    """Rows or worst cases, in which every rate called its share ``accuracy``."""
    if isinstance(found, list):
        return [_with_shares(one) for one in found]
    if not isinstance(found, dict):
        return found
    names = {"accuracy": "share"}
    # What an attack's options are called is its own business.
    return {names.get(name, name): one if name == "options" else _with_shares(one) for name, one in found.items()}


def _settings_of(row: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """Before version 3 every attack used the audit's ``eot`` and got all images."""
    attacked = row["count"] if row["threat"] and row["count"] else 0
    return {"eot": report["eot"], "sequence": None, "attacked": attacked}


def _with_rejected(detection: dict[str, Any] | None) -> dict[str, Any] | None:
    if detection is None:
        return None
    kept = {name: value for name, value in detection.items() if name != "refused"}
    return {**kept, "rejected": detection["refused"]}


def _classifier(description: str) -> dict[str, Any]:
    """Before version 5 a report had only a description of the classifier."""
    unknown = ("spec", "weights_file", "sha256", "parameters", "output", "output_kind")
    return {"description": description, **dict.fromkeys(unknown)}


def _takes_steps(row: dict[str, Any], case: dict[str, Any]) -> bool:
    """Whether a row is that of a multi-step white-box attack on the model and threat of a worst case."""
    same = (row["model"], row["threat"]) == (case["model"], case["threat"]) and row["route"] in ("exact", "bpda")
    return same and (row["gradients_per_image"] > row["eot"] or row["correct"] == 0)
