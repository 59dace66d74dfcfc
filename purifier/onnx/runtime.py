"""ONNX Runtime sessions: the requested provider or an error, never silently the CPU."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import onnxruntime
from onnx import ModelProto, TensorProto, helper

from ..errors import ClassifierError, ConfigError
from ..foreign_code import Attempt, explained, first_line

Provider: TypeAlias = str | tuple[str, dict[str, Any]]
Providers: TypeAlias = Sequence[Provider] | str
"""Names and options, best first; or a policy by which ONNX Runtime chooses among the devices that it finds."""
POLICIES = tuple(
    name.lower().replace("_", "-")
    for name in onnxruntime.OrtExecutionProviderDevicePolicy.__members__
    if name != "DEFAULT"
)
WANTED_DEVICES = {"prefer-cpu": "CPU", "prefer-gpu": "GPU", "prefer-npu": "NPU"}
"""The kind of device that a session must get under a policy."""
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
"""ONNX Runtime's key for keeping which provider runs which node."""
_ERROR, _FATAL = 3, 4


def open_session(
    model: bytes | str | Path | ModelProto,
    *,
    providers: Providers | None = None,
    options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    """Open a session on CUDA if it really loads, else on the CPU; or on exactly the requested providers.

    Parameters
    ----------
    model
        A file, its bytes, or the model itself.
    providers
        ONNX Runtime's provider names, best first, or (name, options) pairs; or one of ``POLICIES``.
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
    with explained_opening(model if isinstance(model, str | Path) else "ONNX model", arguments["providers"]):
        session = onnxruntime.InferenceSession(source, **arguments)
    check_provider(session, providers)
    return session


def session_arguments(providers: Providers | None, options: onnxruntime.SessionOptions | None) -> dict[str, Any]:
    """The keyword arguments of ``onnxruntime.InferenceSession``, after checking the providers' names."""
    if isinstance(providers, str) and options is not None:
        raise ConfigError(
            f"providers: the policy {providers!r} is part of the session options; set it in them, with "
            "set_provider_selection_policy, and leave providers out"
        )
    if options is None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERROR
        options.add_session_config_entry(RECORD_PLACEMENT, "1")
    if isinstance(providers, str):
        policy = providers.upper().replace("-", "_")
        options.set_provider_selection_policy(onnxruntime.OrtExecutionProviderDevicePolicy.__members__[policy])
        return {"sess_options": options, "providers": None, "enable_fallback": 0}
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


@contextmanager
def explained_opening(model: str | Path, providers: Sequence[Provider] | None) -> Iterator[None]:
    """Turn what ONNX Runtime raises while opening ``model`` into an error about it, or about a provider."""
    try:
        with explained(
            f"{model}: ONNX Runtime {onnxruntime.__version__} cannot open it",
            partial(ClassifierError, path=model),
            "check that the file is complete and made for this version (opset <= 26, IR <= 13)",
            describe=first_line,
        ):
            yield
    except ClassifierError as error:
        for name in map(_name, providers or ()):
            if name != CPU and not loads(name):
                raise ConfigError(
                    f"providers: {name} does not load here; run `purifier doctor` to see why, or choose {CPU}"
                ) from error
        raise


def check_provider(session: onnxruntime.InferenceSession, providers: Providers | None) -> None:
    """Raise ``ConfigError`` unless the session runs on the first requested provider, or as its policy says."""
    used = session.get_providers()[0]
    if isinstance(providers, str):
        wanted = WANTED_DEVICES.get(providers)
        kinds = {device.device.type.name for device in onnxruntime.get_ep_devices() if device.ep_name == used}
        if wanted is not None and wanted not in kinds:
            raise ConfigError(
                f"providers: {providers!r} finds no {wanted}, ONNX Runtime chose {used}; run `purifier doctor` to see "
                f"why, or choose {used}"
            )
    elif providers and used != _name(providers[0]):
        raise ConfigError(
            f"providers: expected {_name(providers[0])}, got {used} from ONNX Runtime; run `purifier doctor` to see "
            f"why, or choose {used}"
        )


def check_providers(providers: Any) -> None:
    """Raise unless this is a policy, names, or names with options; opening a session checks that they exist."""
    if isinstance(providers, str) and providers in POLICIES:
        return
    if isinstance(providers, str):
        raise ConfigError(
            f"providers: expected a list such as [{CUDA!r}], or one of {', '.join(POLICIES)}, got {providers!r}"
        )
    entries = providers if isinstance(providers, list | tuple) else [] if providers is None else [None]
    for entry in entries:
        name = entry[0] if isinstance(entry, tuple) and len(entry) == 2 else entry
        if not isinstance(name, str):
            raise ConfigError(f"providers: expected a list of names or (name, options) pairs, got {providers!r}")


def placement_of(session: onnxruntime.InferenceSession) -> dict[str, int]:
    """How many nodes of a session's optimised graph run on each provider.

    Raises
    ------
    ConfigError
        The session was opened with options that do not record this.
    """
    with explained(
        "placement: the session's options do not record it",
        ConfigError,
        f'add sess_options.add_session_config_entry("{RECORD_PLACEMENT}", "1")',
        describe=first_line,
    ):
        parts = session.get_provider_graph_assignment_info()
    found: dict[str, int] = {}
    for part in parts:
        found[part.ep_name] = found.get(part.ep_name, 0) + len(part.get_nodes())
    return found


def working_providers() -> list[str]:
    """The providers that really load here, in ONNX Runtime's order; opens a session for each to find out."""
    return [name for name in onnxruntime.get_available_providers() if loads(name)]


def chosen_by(policy: str) -> str:
    """The provider that ONNX Runtime chooses under one of ``POLICIES``, or why no session gets it."""
    with Attempt((ConfigError, ClassifierError)) as attempt:
        return str(open_session(_tiny(), providers=policy).get_providers()[0])
    return "none: " + str(attempt.error).partition(";")[0].removeprefix("providers: ")


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
