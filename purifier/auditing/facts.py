"""The facts that a report records besides its results: versions, the guard, the settings."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version as version_of
from typing import Any

import onnxruntime
import torch

from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier, purifiers
from ..errors import PluginError
from ..rejection.calibration import Calibration
from ..torch_tools.fingerprint import fingerprint, structure_of
from .data_digest import DataDigest
from .identity import Identity, code_of
from .parts import AuditedParts
from .plan import Job
from .preparing import Prepared
from .setup import AuditSetup


def identify(
    ready: Prepared, digest: DataDigest, span: range, class_names: Sequence[str] | None, *, keeps_adversarial: bool
) -> Identity:
    """Which audit it is, of the images at positions ``span``."""
    parts, setup, request = ready.parts, ready.setup, ready.request
    purifier = parts.purifier if parts.guard is None else parts.guard.purifier
    modules = [*parts.classifier.modules(), *parts.purifier.modules(), *purifier.modules()]
    facts = {
        "versions": versions(ready.jobs),
        "data": digest.facts(),
        "classifier": describe_classifier(parts.classifier),
        "preprocessing": as_json(parts.classifier.preprocessing),
        **describe_guard(parts, random=ready.random),
        "threats": [dataclasses.asdict(threat) for threat in ready.threats],
        **settings_of(setup),
        "device": _device(setup),
        "preset": ready.preset,
        "left_out": list(ready.left_out),
        "calibration": describe_calibration(ready.calibration),
        "probes": request.probes,
        "class_names": list(class_names or ready.data.classes) or None,
    }
    return Identity(
        facts=facts,
        jobs=ready.jobs,
        models=list(setup.subjects),
        routes=parts.routes,
        differentiable=setup.classifier.differentiable,
        marks=setup.rejection.marks,
        random=ready.random,
        total=len(ready.data),
        span=span,
        keeps_adversarial=keeps_adversarial,
        asked={"input": request.input, "feed": {name: fingerprint(one) for name, one in (request.feed or {}).items()}},
        modules={
            "classifier": structure_of(parts.classifier),
            "purifier": structure_of(purifier),
            "purifier_values": ready.weights.before["purifier"],
        },
        code=code_of([*(job.named.attack for job in ready.jobs), *modules]),
    )


def versions(jobs: Sequence[Job]) -> dict[str, str]:
    """Name -> version of everything that ran, including the libraries of the attacks."""
    return {
        "purifier": version_of("adversarial-purifier"),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        **_libraries(jobs),
    }


def _libraries(jobs: Sequence[Job]) -> dict[str, str]:
    """Versions of the libraries whose attacks ran; an attack names its library in ``distribution``."""
    named = {str(getattr(job.named.attack, "distribution", "")) for job in jobs} - {""}
    return {name: version_of(name) for name in sorted(named)}


def describe_guard(parts: AuditedParts, *, random: bool) -> dict[str, Any]:
    """The report's fields about a guard: its purifier, and what it does with rejected images; None without a guard.

    ``random`` says whether the purifier draws noise.
    """
    if parts.guard is None:
        return {"purifier": None, "on_reject": None, "abstain": None, "on_bad_pixels": None}
    rejection = parts.guard.rejection
    return {
        "purifier": {**describe_purifier(parts.guard.purifier), "random": random},
        "on_reject": rejection.on_reject,
        "abstain": rejection.abstain,
        "on_bad_pixels": rejection.on_bad_pixels,
    }


def describe_purifier(purifier: Purifier) -> dict[str, Any]:
    """The purifier's plugin, config and surrogate, and the spec and checkpoint file that it came from, if any."""
    cls = type(purifier)
    try:
        plugin = purifiers.name_of(cls)
    except PluginError:
        plugin = f"{cls.__module__}:{cls.__qualname__}"
    return {
        "plugin": plugin,
        "config": as_json(purifier.config),
        "surrogate": "identity" if cls.surrogate is Purifier.surrogate else "own",
        "spec": purifier.provenance.get("spec"),
        "file": purifier.provenance.get("file"),
        "sha256": purifier.provenance.get("sha256"),
    }


def describe_classifier(classifier: PixelClassifier) -> dict[str, Any]:
    """The classifier in a few words, and what identifies it: a hash of its weights or graph, its output."""
    return {
        "description": classifier.describe().removesuffix(classifier.output.describe()),
        "spec": None,
        "weights_file": None,
        "sha256": classifier.sha256(),
        "parameters": classifier.count_parameters(),
        "output": classifier.output.which,
        "output_kind": classifier.output.kind,
        **({"queries_only": classifier.queries_only} if classifier.queries_only else {}),
    }


def settings_of(setup: AuditSetup) -> dict[str, Any]:
    """The report's fields about how the audit was run."""
    names = ("seed", "batch_size", "judgements", "eot")
    return {**{name: getattr(setup, name) for name in names}, "device": str(setup.device)}


def _device(setup: AuditSetup) -> str:
    """The device as it was asked for: under torchrun each process has its own GPU, and all belong to one audit."""
    return setup.device.type if "LOCAL_RANK" in os.environ else str(setup.device)


def as_json(config: Any) -> dict[str, Any]:
    """A dataclass as it comes back from JSON: tuples become lists."""
    plain = dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else {}
    return dict(json.loads(json.dumps(plain)))


def describe_calibration(calibration: Calibration | None) -> dict[str, Any] | None:
    """The threshold and where it comes from; None if the purifier is not calibrated."""
    if calibration is None:
        return None
    return {name: getattr(calibration, name) for name in ("fpr", "threshold", "data", "count")}
