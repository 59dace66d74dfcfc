"""Exports by torch.onnx.export: quiet, and without side effects on the process."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import purifier
from purifier.data.pixels import Preprocessing
from purifier.onnx.front import PurifierFront
from purifier.onnx.torch_export import export_module
from purifier.rejection.policy import rejection_of
from scoring_purifiers import Classes, calibrated

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
    return export_module(module, [torch.rand(2, 3, 4, 5)], free=[[0]], inputs=["image"], outputs=["twice"])


def process() -> tuple[object, ...]:
    """What an export changes temporarily."""
    levels = [logging.getLogger(name).level for name in EXPORTERS]
    return sys.stdout, sys.stderr, levels, logging.root.manager.disable, list(warnings.filters)


def test_a_failed_export_prints_nothing_and_restores_everything(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("onnxscript"), "level", logging.CRITICAL)
    before = process()
    with pytest.raises(torch.onnx.OnnxExporterError):
        export(Branches())
    assert process() == before
    assert capfd.readouterr() == ("", "")


def test_only_the_exporters_log_messages_are_suppressed(caplog: pytest.LogCaptureFixture) -> None:
    class Telling(Twice):
        def forward(self, image: Tensor) -> Tensor:
            for name in EXPORTERS:
                logging.getLogger(f"{name}.inner").warning("a notice")
            return super().forward(image)

    with caplog.at_level(logging.WARNING):
        export(Telling())
    assert {(record.name, record.message) for record in caplog.records} == {("somebody", "traced")}


def test_exports_in_several_threads_leave_the_process_unchanged() -> None:
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


class Steps(nn.Module):
    """One layer used several times with weights that are copies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.again = copy.deepcopy(self.layer)
        self.register_buffer("turned", torch.rand(3, 5, 4).mT)

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.again(self.layer(image)) + noise + self.turned, image.flatten(1).repeat(1, 2)


def test_equal_weights_are_stored_once_and_the_batch_is_named() -> None:
    image, noise = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    model = export_module(
        Steps(), [image, noise], free=[[0], [0]], inputs=["image", "noise"], outputs=["moved", "flat"]
    )
    weights = [entry for entry in model.graph.initializer if list(entry.dims) == [3, 3, 3, 3]]
    assert len(weights) == 1
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    names = {size.dim_param for value in values for size in value.type.tensor_type.shape.dim}
    assert names == {"", "batch"}
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input] == ["batch", "batch"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 7):
        image, noise = torch.rand(count, 3, 4, 5), torch.rand(count, 3, 4, 5)
        found = session.run(None, {"image": image.numpy(), "noise": noise.numpy()})
        torch.testing.assert_close(torch.from_numpy(found[0]), Steps()(image, noise)[0])


def test_the_front_has_exactly_the_outputs_needed() -> None:
    image = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    known = calibrated(Classes())
    wanted = {
        ("ignore", False): ("purified",),
        ("ignore", True): ("purified", "purifier_score", "purifier_rejected"),
        ("flag", False): ("purified", "purifier_rejected"),
        ("raise", False): ("purified", "purifier_score", "purifier_rejected"),
        ("reclassify", False): ("purified", "purifier_rejected", "purifier_classes"),
    }
    for (on_reject, score), names in wanted.items():
        front = PurifierFront(known, Preprocessing(), score, rejection_of(known, on_reject, None))
        assert front.outputs == names
        assert len(front(image)) == len(names)
    uncalibrated = PurifierFront(Classes(), Preprocessing(), True, rejection_of(Classes(), "ignore", None))
    assert uncalibrated.outputs == ("purified", "purifier_score")
