"""ONNX Runtime sessions: the requested provider or an error, never silently the CPU."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import onnxruntime
from onnx import ModelProto, TensorProto, helper

from ..errors import ClassifierError, ConfigError
from ..foreign_code import Attempt, explained, first_line

Provider: TypeAlias = str | tuple[str, dict[str, Any]]
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_ERROR, _FATAL = 3, 4


def open_session(
    model: bytes | str | Path | ModelProto,
    *,
    providers: Sequence[Provider] | None = None,
    options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    """Open a session on CUDA if it really loads, else on the CPU; or on exactly the requested providers.

    Parameters
    ----------
    model
        A file, its bytes, or the model itself.
    providers
        ONNX Runtime's provider names, best first, or (name, options) pairs.
    options
        Session options; without them only errors are logged.

    Raises
    ------
    ClassifierError
        The file is missing, or ONNX Runtime cannot open the model.
    ConfigError
        A requested provider is not in this build of ONNX Runtime, or does not load.
    """
    source: bytes | str = model.SerializeToString() if isinstance(model, ModelProto) else _source(model)
    arguments = session_arguments(providers, options)
    with explained_opening(model if isinstance(model, str | Path) else "ONNX model"):
        session = onnxruntime.InferenceSession(source, **arguments)
    check_provider(session, providers)
    return session


def session_arguments(
    providers: Sequence[Provider] | None, options: onnxruntime.SessionOptions | None
) -> dict[str, Any]:
    """The keyword arguments of ``onnxruntime.InferenceSession``, after checking the providers' names."""
    if options is None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERROR
    if providers is None:
        chosen: list[Provider] = [CUDA, CPU] if loads(CUDA) else [CPU]
    else:
        chosen = list(providers)
        available = onnxruntime.get_available_providers()
        for name in map(_name, chosen):
            if name not in available:
                raise ConfigError(
                    f"providers: this onnxruntime has no {name!r}, only {', '.join(available)}; "
                    "install the build that has it, or choose one of these"
                )
        if not chosen:
            raise ConfigError(f"providers: expected at least one of {', '.join(available)}, got none")
        if CUDA in map(_name, chosen):
            _preload()
    # With fallback enabled, ONNX Runtime would print a message and continue with another provider.
    return {"sess_options": options, "providers": chosen, "enable_fallback": 0}


def explained_opening(model: str | Path) -> AbstractContextManager[None]:
    """Turn what ONNX Runtime raises while opening ``model`` into a ``ClassifierError``."""
    return explained(
        f"{model}: ONNX Runtime {onnxruntime.__version__} cannot open it",
        partial(ClassifierError, path=model),
        "check that the file is complete and made for this version (opset <= 26, IR <= 13)",
        describe=first_line,
    )


def check_provider(session: onnxruntime.InferenceSession, providers: Sequence[Provider] | None) -> None:
    """Raise ``ConfigError`` unless the session runs on the first requested provider."""
    used = session.get_providers()[0]
    if providers and used != _name(providers[0]):
        raise ConfigError(
            f"providers: expected {_name(providers[0])}, got {used} from ONNX Runtime; run `purifier doctor` to see "
            f"why, or choose {used}"
        )


def working_providers() -> list[str]:
    """The providers that really load here, in ONNX Runtime's order; opens a session for each to find out."""
    return [name for name in onnxruntime.get_available_providers() if loads(name)]


@functools.cache
def loads(provider: str) -> bool:
    """Whether a session on ``provider`` can be opened on this machine."""
    if provider not in onnxruntime.get_available_providers():
        return False
    if provider == CUDA:
        _preload()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    # A provider that fails to load logs to the process's default logger, whatever the session's level; here a failure
    # is an answer, not an error. That logger's level cannot be read, so it is reset to ONNX Runtime's default.
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        with Attempt() as attempt:
            session = onnxruntime.InferenceSession(_tiny(), options, providers=[provider], enable_fallback=0)
    finally:
        onnxruntime.set_default_logger_severity(2)
    return attempt.error is None and bool(session.get_providers()[0] == provider)


def installed_wheels() -> dict[str, str]:
    """Distribution name -> version, of the installed builds of ONNX Runtime."""
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _preload() -> None:
    # Otherwise the CUDA provider looks for CUDA's libraries only outside the Python environment. preload_dlls prints
    # what it does not find; check_provider and the doctor report once that CUDA does not load.
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def _tiny() -> bytes:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "tiny", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def _source(model: bytes | str | Path) -> bytes | str:
    if isinstance(model, bytes):
        return model
    if not Path(model).is_file():
        raise ClassifierError(f"no file {model}; expected an .onnx file", model)
    return str(model)


def _name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]
