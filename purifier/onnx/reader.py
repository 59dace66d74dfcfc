"""Read an untrusted ONNX file safely."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto

from ..errors import ClassifierError
from ..foreign_code import explained, first_line
from .cost import check_cost
from .external_data import read_external_data
from .graphs import all_nodes, all_tensors, graphs_of
from .limits import MAX_BYTES
from .split_file import put_marks, read_split
from .weights import SplitModel

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
NCHWC = "com.microsoft.nchwc"
ORT_FORMAT = b"ORTM"
"""At offset 4 of ONNX Runtime's own format, a FlatBuffer."""


def load_onnx(source: str | Path | ModelProto) -> ModelProto:
    """``read_onnx`` as one model, which is ``source`` itself if that is a model."""
    return read_onnx(source).whole


def read_onnx(source: str | Path | ModelProto) -> SplitModel:
    """Read an ONNX model and check that it can be guarded and is safe to open.

    Data in other files is read from the folder of ``source``, and from nowhere else. Large weights of a file are apart.

    Raises
    ------
    ClassifierError
        The file is missing, damaged or over 1.5 GB, data in other files included; it uses operators that are not
        ONNX's or ONNX Runtime's own, holds nodes compiled for one device, or asks for more than ``onnx_limits`` allows.
    """
    if isinstance(source, ModelProto):
        # Only a model in memory is asked for its size: to find it, protobuf serialises the model.
        _check(source, source.ByteSize(), "ONNX model", None)
        return SplitModel(source)
    read, size = _read(Path(source))
    _check(read.bare, size, str(source), Path(source))
    put_marks(read)
    return read


def _check(model: ModelProto, size: int, where: str, file: Path | None) -> None:
    """Raise unless a model, in which large weights may have no data, can be guarded; fill in data of other files."""
    if size > MAX_BYTES:
        raise _too_large(where, size)
    if not model.graph.output or not model.opset_import:
        raise ClassifierError(
            f"{where} is not an ONNX model (no outputs or no opset); copy or export it again",
            where,
        )
    if not isinstance(model.graph.name, str):  # protobuf returns bytes if it is not UTF-8
        raise ClassifierError(f"{where} is damaged (its graph's name is not text); copy or export it again", where)
    for opset in model.opset_import:
        if not 0 < opset.version < 2**31:  # onnx and ONNX Runtime keep it in a C int
            raise ClassifierError(
                f"{where} is damaged (opset {opset.version} of domain {opset.domain!r}); copy or export it again", where
            )
    local = {(function.domain, function.name) for function in model.functions}
    for graph in graphs_of(model):
        if graph.sparse_initializer:
            raise ClassifierError(
                f"{where} stores {graph.sparse_initializer[0].values.name!r} as a sparse tensor, which cannot be "
                "grafted; save it with dense weights",
                where,
            )
    outside = [tensor for tensor in all_tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
    if outside and file is None:
        raise ClassifierError(
            f"{where} keeps {outside[0].name!r} in another file, and a ModelProto does not say where that is; give the "
            "path of the .onnx file, or load it with onnx.load(path)",
            where,
        )
    if outside and file is not None:
        read_external_data(outside, file, size)
    for node in all_nodes(model):
        if node.op_type == "EPContext":
            raise ClassifierError(
                f"{where} holds an EPContext node, a blob compiled for one device; give the model it was compiled from",
                where,
            )
        if node.domain == NCHWC:
            raise ClassifierError(
                f"{where} uses {node.domain}.{node.op_type}, a layout for one kind of CPU, so ONNX Runtime saved it "
                "with ORT_ENABLE_ALL; save it with graph_optimization_level=ORT_ENABLE_EXTENDED, or give the original "
                "model",
                where,
            )
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in local:
            raise ClassifierError(
                f"{where} uses {node.domain}.{node.op_type}, which is not an operator of ONNX or ONNX Runtime; export "
                "the classifier with standard operators (domains ai.onnx, ai.onnx.ml, com.microsoft)",
                where,
            )
    with explained(
        f"{where} cannot be read as a graph",
        partial(ClassifierError, path=where),
        "run onnx.checker.check_model on it, and copy or export it again",
        describe=first_line,
    ):
        check_cost(model, where)


def _read(path: Path) -> tuple[SplitModel, int]:
    """The model in a file, and how many bytes it has."""
    try:
        if not path.is_file():
            raise ClassifierError(f"no file {path}; expected an .onnx file", path)
        if path.stat().st_size > MAX_BYTES:
            raise _too_large(str(path), path.stat().st_size)
        with path.open("rb") as opened:
            if opened.read(8)[4:] == ORT_FORMAT:
                raise ClassifierError(
                    f"{path} is in ONNX Runtime's own format (.ort), which holds no ONNX graph; give the .onnx file it "
                    "was made from",
                    path,
                )
        return read_split(path)
    except OSError as error:
        raise ClassifierError(f"cannot read {path}: {error.strerror or error}", path) from error
    except DecodeError as error:
        raise ClassifierError(f"{path} is damaged or not ONNX ({error}); copy or export it again", path) from error


def _too_large(where: str, size: int) -> ClassifierError:
    return ClassifierError(
        f"{where} is {size / 1e9:.1f} GB, the limit is {MAX_BYTES / 1e9:.1f} GB; "
        "guard the torch module, or a half-precision copy",
        where,
    )
