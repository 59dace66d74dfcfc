"""Export any torch module as an ONNX graph, without traces of the machine that made it."""

from __future__ import annotations

import copy
import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

import onnx_ir as ir
import torch
from onnx import ModelProto
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    DeduplicateInitializersPass,
    InlinePass,
    RemoveUnusedNodesPass,
)
from torch import Tensor, nn

from ..foreign_code import cause_of, causes_of
from .graphs import all_graphs
from .limits import MAX_ELEMENTS
from .names import IR_VERSION, OPSET

_EXPORTING = threading.Lock()
"""Warning filters, standard error and loggers are global: two exports must not restore each other's."""


def export_module(
    module: nn.Module,
    examples: Sequence[Tensor],
    *,
    free: Sequence[Sequence[int]],
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int = OPSET,
) -> ModelProto:
    """``torch.onnx.export`` of a module into one self-contained model without source paths.

    A copy in evaluation mode on the CPU is exported; the module is not touched. The first dimension of the inputs, if
    free, is called ``batch``.

    Parameters
    ----------
    examples
        An example of each input.
    free
        For each input, the dimensions that may have other sizes; except for the first, torch fixes those whose size
        the module depends on.
    """
    dim = torch.export.Dim
    sizes = tuple(
        {place: dim.AUTO if place and number else dim.DYNAMIC for place in places} for number, places in enumerate(free)
    )
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            copy.deepcopy(module).cpu().eval(),
            tuple(examples),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=sizes,
            input_names=list(inputs),
            output_names=list(outputs),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model
    InlinePass()(model)
    # Each unrolled step repeats the same weights. The hashing variant of this pass fails on transposed ones.
    DeduplicateInitializersPass(size_limit=MAX_ELEMENTS)(model)
    RemoveUnusedNodesPass()(model)
    model.metadata_props.clear()
    model.ir_version = IR_VERSION
    _name_batch(model)
    return to_proto(model)


def _name_batch(model: ir.Model) -> None:
    """Rename the inputs' free first dimension from torch's own symbol (such as ``s40``) to ``batch`` everywhere."""
    firsts = [value.shape[0] for value in model.graph.inputs if value.shape]
    symbols = {first.value for first in firsts if isinstance(first, ir.SymbolicDim) and first.value}
    if not symbols:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(symbols))) + r")\b")
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
            if value.shape is not None:
                # A new shape, because those of models that onnx's converter rewrote (opset 26) are frozen.
                value.shape = ir.Shape([_renamed(size, pattern) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, symbols: re.Pattern[str]) -> int | ir.SymbolicDim:
    if isinstance(size, int) or not size.value:
        return size
    return ir.SymbolicDim(symbols.sub("batch", size.value))


def to_proto(model: ir.Model) -> ModelProto:
    """The model as a file holds it, for other tools too: quantisation fails if stored weights are declared twice."""
    made = ir.to_proto(_without_sources(model))
    for graph in all_graphs(made.graph):
        stored = {tensor.name for tensor in graph.initializer}
        kept = [value for value in graph.value_info if value.name not in stored]
        del graph.value_info[:]
        graph.value_info.extend(kept)
    return made


def _without_sources(model: ir.Model) -> ir.Model:
    """Remove, in place, what exporters record on nodes and values: source lines, stack traces, paths."""
    ClearMetadataAndDocStringPass()(model)
    for graph in (model.graph, *model.graph.subgraphs()):
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)):
            value.doc_string = None
            value.metadata_props.clear()
    return model


def innermost_cause(error: BaseException) -> str:
    """The innermost cause of an exporter's error, whose own message is long."""
    return cause_of(causes_of(error, declared=True)[-1])


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide torch's notices, which callers cannot act on; anything that matters raises an exception."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    with _EXPORTING:
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(max(logger.level, logging.ERROR))
            # A failed export prints the graphs it tried to build to standard error.
            with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
                # torch and its exporter use names that they themselves deprecated.
                for kind in (DeprecationWarning, FutureWarning):
                    warnings.filterwarnings("ignore", category=kind, module=r"(torch|onnxscript|onnx_ir|copyreg)\b")
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
