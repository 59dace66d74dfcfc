"""torch.onnx.export as this project calls it: quiet, and nothing of the process left changed."""

from __future__ import annotations

import logging
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import onnx
import pytest
import torch
from torch import Tensor, nn

import purifier
from purifier.onnx_front import PurifierFront, export_module
from purifier.pixels import Preprocessing

EXPORTERS = ("torch.onnx", "onnxscript", "onnx_ir")


class Twice(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        logging.getLogger("somebody").warning("traced")
        return image * 2


class Branches(nn.Module):
    """What torch cannot export: its path depends on the data."""

    def forward(self, image: Tensor) -> Tensor:
        return image if image.sum() > 0 else image * 2


def export(module: nn.Module) -> onnx.ModelProto:
    return export_module(module, torch.rand(2, 3, 4, 5), free=[0], input="image", outputs=["twice"])


def process() -> tuple[object, ...]:
    """What an export changes for its time only."""
    levels = [logging.getLogger(name).level for name in EXPORTERS]
    return sys.stdout, sys.stderr, levels, logging.root.manager.disable, list(warnings.filters)


def test_a_failed_export_prints_nothing_and_puts_everything_back(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("onnxscript"), "level", logging.CRITICAL)
    before = process()
    with pytest.raises(torch.onnx.OnnxExporterError):
        export(Branches())
    assert process() == before
    assert capfd.readouterr() == ("", "")


def test_the_exporters_notices_are_kept_back_and_nobody_elses(caplog: pytest.LogCaptureFixture) -> None:
    class Telling(Twice):
        def forward(self, image: Tensor) -> Tensor:
            for name in EXPORTERS:
                logging.getLogger(f"{name}.inner").warning("a notice")
            return super().forward(image)

    with caplog.at_level(logging.WARNING):
        export(Telling())
    assert {(record.name, record.message) for record in caplog.records} == {("somebody", "traced")}


def test_exports_in_several_threads_leave_the_process_as_it_was() -> None:
    before = process()
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(export, [Twice(), Twice(), Twice()]))
    assert process() == before
    assert [model.graph.output[0].name for model in made] == ["twice"] * 3


def test_a_half_precision_purifier_without_parameters_takes_images_of_any_type() -> None:
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    front = PurifierFront(purifier.load("blur").half(), Preprocessing(), score=True)
    purified, scores = front(image)
    assert (purified.dtype, scores.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(purified, purifier.load("blur").purify(image), atol=2e-3, rtol=0)
