"""Conformance checks for plugin authors: call the one for your kind of plugin from your own tests.

A check that fails raises ``AssertionError``, which says which rule of the contract is broken and what was found.
"""

from .attacks import check_attack
from .exporters import check_exporter
from .purifiers import check_purifier

__all__ = ["check_attack", "check_exporter", "check_purifier"]
