"""The head of a printed report: what exactly was audited, as far as the report knows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contracts.purifier import purifiers
from ..errors import PluginError
from .figures import count_text
from .report import AuditReport

HASH_SHOWN = 12
"""How many characters of a hash are printed."""


def heading(report: AuditReport) -> list[tuple[str, str]]:
    """Name and value of each line."""
    lines = [("classifier", _classifier(report.classifier))]
    why = report.classifier.get("queries_only")
    if why:
        lines.append(
            ("attacks", f"queries only, none of them white-box: the classifier has no gradient to follow ({why})")
        )
    if report.purifier is None:
        alone = "an exported guard, audited as it is" if report.rejects else "the classifier was audited alone"
        lines.append(("purifier", f"none: {alone}"))
    else:
        lines.append(("purifier", _purifier(report.purifier)))
        if report.on_reject not in (None, "ignore"):
            lines.append(("on_reject", _on_reject(report)))
        if report.on_bad_pixels not in (None, "raise"):
            lines.append(("on_bad_pixels", str(report.on_bad_pixels)))
    total = None if report.partial is None else f"of {report.partial.total:,}, all hashed"
    return [*lines, ("data", _data(report.data, total))]


def _classifier(facts: Mapping[str, Any]) -> str:
    parameters, spec = facts.get("parameters"), facts.get("spec")
    kind, description = facts.get("output_kind"), str(facts["description"])
    return _listed(
        description,
        None if str(spec) in description.split() else _named("MODEL ", spec),
        _named("weights ", facts.get("weights_file")),
        _sha256(facts),
        None if parameters is None else f"{parameters:,} parameters",
        _named("output ", facts.get("output")),
        None if kind == "logits" else _named("output kind ", kind),
    )


def _purifier(facts: Mapping[str, Any]) -> str:
    plugin, spec, file = str(facts["plugin"]), facts.get("spec"), facts.get("file")
    changed = _changed(plugin, facts.get("config") or {})
    options = ", ".join(f"{name}={_value(value)}" for name, value in changed.items())
    if file is None and spec is not None:
        spec = None  # NAME:key=value, which plugin and options already say
    if spec is not None and Path(spec).name == file:
        file = None
    return _listed(plugin, _named("PURIFIER ", spec), options or None, _named("", file), _sha256(facts))


def _on_reject(report: AuditReport) -> str:
    if report.on_reject != "abstain":
        return str(report.on_reject)
    return "abstain, NaN" if report.abstain is None else f"abstain, class {report.abstain}"


def _data(facts: Mapping[str, Any], total: str | None) -> str:
    """``total`` says of how many images those of a partial report are a part."""
    skipped = facts.get("skipped")
    return _listed(
        str(facts["name"]),
        " ".join([count_text(facts["count"]), *([total] if total else [])]),
        None if not skipped else f"{count_text(skipped)} left out that cannot be read",
        None if facts.get("labels") is None else f"no labels: compared with the {facts['labels']}",
        _sha256(facts),
    )


def _changed(plugin: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not the plugin's defaults; all of them if the plugin is not installed here."""
    try:
        cls = purifiers.get(plugin).Config
    except PluginError:
        return dict(config)
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    defaults = {field.name: _as_json(_default(field)) for field in fields}
    return {name: value for name, value in config.items() if name not in defaults or value != defaults[name]}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _as_json(value: Any) -> Any:
    """A default as it would come back from JSON; anything that JSON cannot hold equals no option."""
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return dataclasses.MISSING


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list) and all(type(one) is int for one in value):
        return "x".join(map(str, value))
    return str(value)


def _sha256(facts: Mapping[str, Any]) -> str | None:
    digest = facts.get("sha256")
    return None if digest is None else f"sha256 {str(digest)[:HASH_SHOWN]}"


def _named(name: str, value: object) -> str | None:
    return None if value is None else f"{name}{value}"


def _listed(*parts: str | None) -> str:
    return "; ".join(part for part in parts if part is not None)
