"""Export to a model repository of NVIDIA Triton: the ONNX file and its ``config.pbtxt``."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import onnxruntime

from purifier.errors import ConfigError, ExportError, OutputError
from purifier.guards.exporter import Exporter, ExportReport
from purifier.guards.guard import Guard
from purifier.vocabulary import Norm

from ._card import card_path
from ._precision import Precision
from ._verify import open_quietly
from .onnx import Noise, OnnxExporter

Device = Literal["cpu", "cuda", "tensorrt"]
TYPES = {"tensor(float)": "FP32", "tensor(float16)": "FP16", "tensor(double)": "FP64", "tensor(string)": "STRING"}
FILE, CONFIG, VERSION = "model.onnx", "config.pbtxt", "1"


class TritonExporter(Exporter):
    """Writes the folder of one model into a model repository."""

    def export(  # type: ignore[override]  # the base class takes any **options, here they are named
        self,
        guard: Guard,
        path: str | Path,
        *,
        image_shape: tuple[int, int, int] | None = None,
        batches: Sequence[int] = (1, 2, 7),
        tolerance: float = 1e-4,
        noise: Noise = "mean",
        precision: Precision = "fp32",
        batch: int | None = None,
        data: Any = None,
        min_agreement: float | None = None,
        norm: Norm = "linf",
        eps: float = 0.1,
        sample: int = 50,
        device: Device = "cuda",
        instances: int = 1,
        max_batch: int = 32,
        delay: int = 1000,
    ) -> ExportReport:
        """Write ``path``/1/model.onnx, verified as by the format ``onnx``, and ``path``/config.pbtxt.

        Requests that arrive together are answered as one batch. The name of the model is that of the folder.

        Parameters
        ----------
        path
            A folder that does not exist yet, such as ``models/guarded`` for the model ``guarded`` of the repository
            ``models``.
        image_shape, batches, tolerance, noise, precision, batch, data, min_agreement, norm, eps, sample
            As for the format ``onnx``.
        device
            ``cpu``, ``cuda``, or ``tensorrt`` for ONNX Runtime's TensorRT provider with half precision.
        instances
            How many copies of the model answer at the same time on each device.
        max_batch
            The largest batch. A file with a fixed batch size is served with that.
        delay
            How many microseconds a request waits for others.

        Raises
        ------
        ConfigError
            An option has an impossible value.
        OutputError
            The folder exists, or cannot be written.
        ExportError
            As for the format ``onnx``; nothing is left.
        """
        path = Path(path)
        _check_options(device, {"instances": instances, "max_batch": max_batch, "delay": delay})
        if path.exists() or path.is_symlink():
            raise OutputError(f"{path} exists; choose another name for the model, or remove it", path)
        missing = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            file = made / VERSION / FILE
            report = OnnxExporter().export(
                guard,
                file,
                image_shape=image_shape,
                batches=batches,
                tolerance=tolerance,
                noise=noise,
                precision=precision,
                batch=batch,
                data=data,
                min_agreement=min_agreement,
                norm=norm,
                eps=eps,
                sample=sample,
            )
            card_path(file).unlink()  # Triton's folders are for what it serves; the report has it
            config = _config(path.name, open_quietly(file), device, instances, max_batch, delay)
            (made / CONFIG).write_text(config)
            made.chmod(0o755)
            made.rename(path)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            for folder in missing:
                if not any(folder.iterdir()):
                    folder.rmdir()
            raise
        return ExportReport(path, "triton", report.size, report.opset, report.max_error, report.notes, report.card)


def _config(
    name: str, session: onnxruntime.InferenceSession, device: Device, instances: int, most: int, delay: int
) -> str:
    """The text of ``config.pbtxt`` (Triton's model_config.proto)."""
    fixed = session.get_inputs()[0].shape[0]
    batch = fixed if isinstance(fixed, int) else most
    lines = [f"name: {json.dumps(name)}", 'platform: "onnxruntime_onnx"', f"max_batch_size: {batch}"]
    for field, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for value in values:
            lines.append(
                f"{field} {{ name: {json.dumps(value.name)} data_type: {_type(value)} dims: {_dims(value, name)} }}"
            )
    if not isinstance(fixed, int):
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {delay} }}")
    kind = "KIND_CPU" if device == "cpu" else "KIND_GPU"
    lines.append(f"instance_group {{ count: {instances} kind: {kind} }}")
    if device == "tensorrt":
        lines.append(
            'optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" '
            'parameters { key: "precision_mode" value: "FP16" } } } }'
        )
    lines += _warm_up(session.get_inputs(), batch)
    return "\n".join(lines) + "\n"


def _warm_up(inputs: Sequence[Any], batch: int) -> list[str]:
    """A batch of random images before the first request, if their size is fixed."""
    if not all(isinstance(size, int) for value in inputs for size in value.shape[1:]):
        return []
    given = " ".join(
        f"inputs {{ key: {json.dumps(value.name)} value {{ data_type: {_type(value)} "
        f"dims: [ {', '.join(map(str, value.shape[1:]))} ] random_data: true }} }}"
        for value in inputs
    )
    return [f'model_warmup {{ name: "random" batch_size: {batch} {given} }}']


def _type(value: Any) -> str:
    kind = str(value.type)
    return "TYPE_" + TYPES.get(kind, kind.removeprefix("tensor(").removesuffix(")").upper())


def _dims(value: Any, name: str) -> str:
    if not str(value.type).startswith("tensor("):
        raise ExportError(f"output {value.name!r} is a {value.type}; Triton serves tensors only", name)
    sizes = [size if isinstance(size, int) else -1 for size in value.shape[1:]]
    return f"[ {', '.join(map(str, sizes or [1]))} ]" + ("" if sizes else " reshape { shape: [ ] }")


def _check_options(device: Any, counts: dict[str, Any]) -> None:
    if device not in get_args(Device):
        raise ConfigError(f"device: expected one of {', '.join(get_args(Device))}, got {device!r}")
    for name, value in counts.items():
        least = 0 if name == "delay" else 1
        if type(value) is not int or value < least:
            raise ConfigError(f"{name}: expected a whole number of at least {least}, got {value!r}")
