"""A hash of the code that Python has loaded for some modules, from their files if those are as they were when read."""

from __future__ import annotations

import functools
import hashlib
import site
import sys
import sysconfig
import time
from collections.abc import Collection
from pathlib import Path
from types import FunctionType, ModuleType

KNOWN = {*sys.stdlib_module_names, "torch", "numpy", "onnx", "onnxruntime", "onnxscript", "onnx_ir"} - {"__main__"}
"""Top-level modules for which a version stands."""
OWN = __name__.partition(".")[0]
MAX_SOURCES = 1000
"""Files of one package; those of a larger one are not read."""
MARGIN = 10.0
"""Seconds from reading the code of a plugin to reading this module, if the plugin is imported first, at most."""
STARTED = time.time()


class Unkeyed(Exception):  # an answer, not an error
    """Something decides about a graph that no key can stand for, so the graph cannot be kept."""


def hash_of_code(modules: Collection[str]) -> str:
    """A hash, in hexadecimal, of all source files of the packages of ``modules``, and of what they import.

    What those modules import is followed, with all files of its packages too, but into installed libraries: for these
    the state of their first file stands, which an update replaces.

    Raises
    ------
    Unkeyed
        Code is no file, there are too many files, or one was changed since this process began or shortly before: then
        the file may not be what was loaded.
    """
    lines: list[str] = []
    libraries, folders = _walk(modules)
    for file in _all_sources(frozenset(folders)):
        status = file.stat()
        changed = max(status.st_mtime, status.st_ctime)  # the second is kept by no copy
        if changed > STARTED - MARGIN:
            raise Unkeyed(f"{file} may have changed since it was read")
        lines.append(f"{file} {_hash(file, changed, status.st_size)}")
    lines += [f"{name} {_stamp(name)}" for name in sorted(libraries)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _walk(modules: Collection[str]) -> tuple[set[str], set[str]]:
    """The libraries that modules import, and the folders and single files of all others that they reach."""
    libraries: set[str] = set()
    places: set[str] = set()
    pending, seen = list(modules), set(modules)
    tops = {name.partition(".")[0] for name in modules}
    while pending:
        name = pending.pop()
        top = name.partition(".")[0]
        if top in KNOWN:
            continue
        if top not in tops and _in_library(top):
            libraries.add(top)
            continue
        places |= _places(name)
        if top == OWN:  # its dependencies have versions
            continue
        for other in _named_in(sys.modules[name]) - seen:
            seen.add(other)
            pending.append(other)
    return libraries, places


def _named_in(module: ModuleType) -> set[str]:
    """The modules that a module's variables are, or come from."""
    found = set()
    for variable, value in list(vars(module).items()):
        if not variable.isidentifier():
            continue  # put there by a tool, such as pytest: no source can name it
        if isinstance(value, ModuleType):
            found.add(value.__name__)
        elif isinstance(value, FunctionType | type):
            found.add(str(value.__module__))
    return {name for name in found if name in sys.modules}


def _places(name: str) -> set[str]:
    """The file of a top-level module, or the folders of a package, of which an editable install can have several."""
    module = sys.modules.get(name)
    top = sys.modules.get(name.partition(".")[0])
    if module is None or top is None or getattr(module, "__file__", None) is None or name == "__main__":
        raise Unkeyed(f"the code of {name} is no file")
    if not hasattr(top, "__path__"):
        return {str(top.__file__)}
    parts = name.split(".")
    packages = [sys.modules.get(".".join(parts[: count + 1])) for count in range(len(parts))]
    return {str(folder) for package in packages for folder in getattr(package, "__path__", ())}


@functools.cache
def _all_sources(places: frozenset[str]) -> list[Path]:
    """A new file among them matters only if one that was loaded was changed too, which is noticed."""
    return sorted({file for place in places for file in _sources(place)})


def _sources(place: str) -> tuple[Path, ...]:
    if not Path(place).is_dir():
        if not place.endswith(".py") or not Path(place).is_file():
            raise Unkeyed(f"{place} is no source file")
        return (Path(place),)
    found = tuple(Path(place).rglob("*.py"))
    if not 0 < len(found) <= MAX_SOURCES:
        raise Unkeyed(f"{place} has {len(found)} source files")
    return found


@functools.cache
def _hash(file: Path, changed: float, size: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    named = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple({Path(one).resolve() for one in (*named, *site.getsitepackages(), site.getusersitepackages())})


def _in_library(top: str) -> bool:
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is not None and any(Path(file).resolve().is_relative_to(folder) for folder in _library_folders())


def _stamp(top: str) -> str:
    status = Path(str(sys.modules[top].__file__)).stat()
    return f"{status.st_mtime_ns} {status.st_size}"
