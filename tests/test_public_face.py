"""What is importable from ``purifier``: pinned, lazy, and the same after every submodule has been imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import purifier

FACE = {
    *(
        "Attack",
        "AuditReport",
        "BenchReport",
        "Diagnosis",
        "ExportReport",
        "Exporter",
        "GuardedModule",
        "GuardedSession",
    ),
    *("ImageData", "Preprocessing", "Purifier", "PurifierError", "RejectedError", "SampleGenerator", "Target"),
    *("Threat", "__version__", "attacks", "audit", "bench", "calibrate", "check_baseline", "diagnose", "merge_audits"),
    *("Certificates", "certify"),
    *(
        "draw_purifications",
        "export",
        "exporters",
        "guard",
        "into_range",
        "load",
        "load_data",
        "onnx_limits",
        "purifiers",
        "purify_images",
        "read_images",
        "save",
        "train",
    ),
}
WALK = """
import importlib, pkgutil, sys
import purifier
registries = purifier.purifiers, purifier.attacks, purifier.exporters
for registry in registries:
    for name in registry:
        try:
            registry.get(name)
        except purifier.PurifierError as error:  # an adapter whose library is not installed
            assert "not installed" in str(error), error
for module in pkgutil.walk_packages(purifier.__path__, "purifier."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert (purifier.purifiers, purifier.attacks, purifier.exporters) == registries
functions = "audit bench calibrate certify diagnose export guard load load_data save train"
assert all(type(getattr(purifier, name)).__name__ == "function" for name in functions.split())
assert all(hasattr(purifier, name) for name in purifier.__all__)
assert not {name for name in purifier.__all__ if type(getattr(purifier, name)).__name__ == "module"}
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=True)


def test_the_public_names_are_pinned() -> None:
    assert set(purifier.__all__) == FACE
    assert list(purifier.__all__) == sorted(purifier.__all__)
    assert set(purifier.__all__) <= set(dir(purifier))
    with pytest.raises(AttributeError, match="has no attribute 'guards_'"):
        _ = purifier.guards_


def test_type_checkers_see_what_is_imported_lazily() -> None:
    tree = ast.parse(Path(purifier.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen | {"__version__"} == FACE


def test_importing_purifier_does_not_import_torch() -> None:
    run("-c", "import sys, purifier; assert 'torch' not in sys.modules; purifier.Threat; assert 'torch' in sys.modules")


@pytest.mark.parametrize("line", ["--help", "--version", "list", "audit --help", "train --help", "export --help"])
def test_help_and_lists_do_not_import_torch(line: str) -> None:
    code = (
        "import sys\nfrom purifier.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert not end.code\nassert not {'torch', 'onnxruntime', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    assert run("-c", code, *line.split()).stdout


def test_python_dash_m_purifier_is_the_command() -> None:
    assert run("-m", "purifier", "--version").stdout == f"purifier {purifier.__version__}\n"


@pytest.mark.integration
def test_the_face_stays_after_every_submodule_has_been_imported() -> None:
    run("-c", WALK)
