"""Logarithms of certain decoders: ONNX gives torch's figures, not infinity."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purifier.onnx_front import export_module

LOGITS = torch.tensor([[-300.0, -120, -90, -20, -1, 0, 1, 20, 90, 300]])
TARGET = torch.tensor([[0.0, 1, 0.5, 0, 1, 0.3, 0, 1, 0, 1]])


class Losses(nn.Module):
    """Every form of the two."""

    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        target, three = TARGET.to(logits.dtype), torch.tensor(3.0, dtype=logits.dtype)
        return (
            F.binary_cross_entropy_with_logits(logits, target, reduction="none"),
            F.binary_cross_entropy_with_logits(logits, target),
            F.binary_cross_entropy_with_logits(logits, target, reduction="sum", weight=three),
            F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=three),
            F.logsigmoid(logits),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_logits_have_finite_losses(dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype)
    model = export_module(Losses(), [logits], free=[()], inputs=["logits"], outputs=list("abcde"))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for found, expected in zip(session.run(None, {"logits": logits.numpy()}), Losses()(logits), strict=True):
        assert expected.isfinite().all()
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-5, atol=1e-7)
