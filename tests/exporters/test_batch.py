"""Files with a fixed batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import purifier
from onnx_models import linear
from purifier.errors import ConfigError, ExportError
from purifier.guards.exporting import export
from purifier.guards.guard import guard


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3 * 64, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.reshape(images.shape[0], -1))


def fixed(size: int) -> object:
    model = linear()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    return model


@pytest.mark.parametrize("made_of", ["torch", "onnx"])
def test_a_batch_size_can_be_fixed(made_of: str, tmp_path: Path) -> None:
    guarded = guard(Net() if made_of == "torch" else linear(), "blur")
    shape = {"image_shape": (3, 8, 8)} if made_of == "torch" else {}
    data = purifier.ImageData("random", torch.rand((10, 3, 8, 8)), torch.arange(10) % 5)
    report = export(guarded, tmp_path / "four.onnx", batch=4, data=data, sample=3, **shape)
    free = export(guarded, tmp_path / "free.onnx", **shape)
    assert [*report.max_error] == [4] and [*free.max_error] == [1, 2, 7]
    sizes = [
        [value["shape"][0] for value in found.card[side]] for found in (report, free) for side in ("inputs", "outputs")
    ]
    assert sizes[:2] == [[4], [4]] and all(isinstance(size, str) for side in sizes[2:] for size in side)
    assert report.card["latency"]["batch"] == 4
    assert report.card["clean"]["images"] == 8  # whole batches
    assert report.card["robust"]["images"] == 3
    images = {"images": torch.rand(4, 3, 8, 8).numpy()}
    sessions = [
        onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"]) for found in (report, free)
    ]
    np.testing.assert_allclose(*(session.run(None, images)[0] for session in sessions), atol=1e-6)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        sessions[0].run(None, {"images": images["images"][:2]})


def test_a_classifiers_own_batch_size_stays(tmp_path: Path) -> None:
    path = tmp_path / "guarded.onnx"
    with pytest.raises(
        ExportError, match=r"expected a batch size of 2, to which the classifier's file is fixed, got batch=4"
    ):
        export(guard(fixed(2), "blur"), path, batch=4)
    assert not list(tmp_path.iterdir())
    assert [*export(guard(fixed(2), "blur"), path, batch=2).max_error] == [2]


@pytest.mark.parametrize("batch", [0, -1, 1.5, "4", True])
def test_no_other_value_is_a_batch_size(batch: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch: expected a batch size, 1 or more"):
        export(guard(linear(), "blur"), tmp_path / "guarded.onnx", batch=batch)
