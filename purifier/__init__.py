"""purifier: a learned filter in front of an image classifier, and an honest attack on both.

``guard(model, "purifier.safetensors")`` returns the classifier with the filter in front of it; ``audit`` attacks the
result through the filter; ``export`` writes it to one ONNX file. Imports are lazy (PEP 562), so ``import purifier`` and
``purifier --help`` do not wait for torch.
"""

import typing as _typing
from importlib import import_module as _import_module
from importlib.metadata import version as _version

if _typing.TYPE_CHECKING:
    from .attacking.attack import Attack, attacks
    from .attacking.target import Target
    from .attacking.threat import Threat
    from .auditing.audit import audit
    from .auditing.baseline import check_baseline
    from .auditing.report import AuditReport
    from .auditing.shards import merge_audits
    from .certifying.certificates import Certificates
    from .certifying.certify import certify
    from .contracts.checkpoint import load, save
    from .contracts.purifier import Purifier, purifiers
    from .data.images import ImageData
    from .data.loading import load_data
    from .data.pixels import Preprocessing, into_range
    from .diagnosis import Diagnosis, diagnose
    from .errors import PurifierError, RejectedError
    from .guards.exporter import Exporter, ExportReport, exporters
    from .guards.exporting import export
    from .guards.guard import guard
    from .guards.module import GuardedModule
    from .guards.session import GuardedSession
    from .onnx.limits import onnx_limits
    from .pictures import draw_purifications, purify_images, read_images
    from .rejection.calibration import calibrate
    from .seeding import SampleGenerator
    from .timing.bench import bench
    from .timing.report import BenchReport
    from .training.loop import train

__version__ = _version("adversarial-purifier")

__all__ = [
    "Attack",
    "AuditReport",
    "BenchReport",
    "Certificates",
    "Diagnosis",
    "ExportReport",
    "Exporter",
    "GuardedModule",
    "GuardedSession",
    "ImageData",
    "Preprocessing",
    "Purifier",
    "PurifierError",
    "RejectedError",
    "SampleGenerator",
    "Target",
    "Threat",
    "__version__",
    "attacks",
    "audit",
    "bench",
    "calibrate",
    "certify",
    "check_baseline",
    "diagnose",
    "draw_purifications",
    "export",
    "exporters",
    "guard",
    "into_range",
    "load",
    "load_data",
    "merge_audits",
    "onnx_limits",
    "purifiers",
    "purify_images",
    "read_images",
    "save",
    "train",
]

_MEMBERS = {
    "attacking.attack": ("Attack", "attacks"),
    "attacking.target": ("Target",),
    "attacking.threat": ("Threat",),
    "auditing.audit": ("audit",),
    "auditing.baseline": ("check_baseline",),
    "auditing.report": ("AuditReport",),
    "auditing.shards": ("merge_audits",),
    "certifying.certificates": ("Certificates",),
    "certifying.certify": ("certify",),
    "contracts.checkpoint": ("load", "save"),
    "contracts.purifier": ("Purifier", "purifiers"),
    "data.images": ("ImageData",),
    "data.loading": ("load_data",),
    "data.pixels": ("Preprocessing", "into_range"),
    "diagnosis": ("Diagnosis", "diagnose"),
    "errors": ("PurifierError", "RejectedError"),
    "guards.exporter": ("ExportReport", "Exporter", "exporters"),
    "guards.exporting": ("export",),
    "guards.guard": ("guard",),
    "guards.module": ("GuardedModule",),
    "guards.session": ("GuardedSession",),
    "onnx.limits": ("onnx_limits",),
    "pictures": ("draw_purifications", "purify_images", "read_images"),
    "rejection.calibration": ("calibrate",),
    "seeding": ("SampleGenerator",),
    "timing.bench": ("bench",),
    "timing.report": ("BenchReport",),
    "training.loop": ("train",),
}
_MODULE_OF = {name: module for module, names in _MEMBERS.items() for name in names}


if not _typing.TYPE_CHECKING:  # type checkers would accept any misspelt name

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(_import_module(f".{_MODULE_OF[name]}", __name__), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# The subpackage and the exporter registry share the name ``exporters``, and importing the subpackage sets this
# attribute. So import the (empty) subpackage now and delete the attribute; __getattr__ then finds the registry.
_import_module(".exporters", __name__)
del globals()["exporters"]
