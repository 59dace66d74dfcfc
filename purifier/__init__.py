"""purifier: a learned filter in front of an image classifier, and an honest attack on both.

``guard(model, "purifier.safetensors")`` gives the classifier back with the filter in front of it; ``audit`` attacks the
result through the filter; ``export`` writes it to one ONNX file.
"""

from importlib import import_module as _import_module

from .audit import audit as audit
from .checkpoint import load as load
from .checkpoint import save as save
from .detector import calibrate as calibrate
from .errors import PurifierError as PurifierError
from .errors import RefusedError as RefusedError
from .exporting import export as export
from .guard import GuardedModule as GuardedModule
from .guard import GuardedSession as GuardedSession
from .guard import guard as guard
from .interfaces import Attack as Attack
from .interfaces import Exporter as Exporter
from .interfaces import ExportReport as ExportReport
from .interfaces import Purifier as Purifier
from .interfaces import attacks as attacks
from .interfaces import exporters as exporters
from .interfaces import purifiers as purifiers
from .pixels import Preprocessing as Preprocessing
from .threat import Threat as Threat

# A sub-package of the registry's name, imported later by a plugin, would take the name: import it now, give it back.
_registry = exporters
_import_module(".exporters", __name__)
exporters = _registry
