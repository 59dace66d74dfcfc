"""The conformance kit catches exporters that break the contract."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import purifier
from onnx_models import FLOAT, WEIGHT, linear, model_of
from purifier import Exporter, ExportReport
from purifier.atomic import atomic_write
from purifier.errors import OutputError
from purifier.testing import check_exporter


class Pixels(torch.nn.Module):
    def forward(self, images):
        return images.flatten(1) @ torch.from_numpy(WEIGHT)


class Writing(Exporter):
    """Writes a given ONNX model for any guard."""

    def __init__(self, model: onnx.ModelProto, size: int | None = None, checked: bool = True) -> None:
        self.content, self.claimed, self.checked = model.SerializeToString(), size, checked

    def export(self, guard, path, **options):
        atomic_write(path, self.content)
        size = len(self.content) if self.claimed is None else self.claimed
        return ExportReport(path, "onnx", size, 18, {1: 0.0} if self.checked else {})


class Littering(Writing):
    def export(self, guard, path, **options):
        try:
            return super().export(guard, path, **options)
        except OutputError:
            path.parent.with_name("partial.onnx").write_bytes(self.content[:10])
            raise


class Crashing(Writing):
    def export(self, guard, path, **options):
        path.write_bytes(self.content)
        return super().export(guard, path, **options)


def scaled(factor: float) -> onnx.ModelProto:
    """The linear classifier with other weights."""
    model = linear()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(WEIGHT * np.float32(factor), "weight"))
    return model


def tiny() -> onnx.ModelProto:
    """A valid model that has nothing to do with images."""
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    return model_of([node], inputs=[("x", FLOAT, [1])], outputs=[("y", FLOAT, [1])])


def one_image() -> onnx.ModelProto:
    """The linear classifier of one image, whatever the batch."""
    model = linear()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model


@pytest.fixture(scope="module", params=["torch", "onnx"])
def guarded(request: pytest.FixtureRequest):
    return purifier.guard(Pixels() if request.param == "torch" else linear(), "identity")


def test_a_good_exporter_passes(guarded, tmp_path: Path) -> None:
    # The identity's guard is the classifier, so that its own file is a faithful export.
    check_exporter(Writing(linear()), guarded, tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("exporter", "rule"),
    [
        (Writing(linear(), size=3), "file's size"),
        (Writing(linear(), checked=False), "must be verified"),
        (Writing(scaled(1.01)), "must answer as the guard at batch 1; got 0.0"),
        (Writing(one_image()), "must run at batch 2"),
        (Writing(tiny()), "must take the guard's images"),
        (Littering(linear()), "a failed export must leave no files.*partial.onnx"),
        (Crashing(linear()), "must raise a PurifierError; got NotADirectoryError"),
    ],
)
def test_bad_exporters_are_caught(exporter: Exporter, rule: str, guarded, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_exporter(exporter, guarded, tmp_path / "x.onnx")


def test_a_fixed_batch_is_the_only_one_that_must_run(tmp_path: Path) -> None:
    check_exporter(Writing(one_image()), purifier.guard(one_image(), "identity"), tmp_path / "x.onnx")
