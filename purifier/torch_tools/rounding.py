"""How coarsely torch multiplies in float32, which depends on settings."""

from __future__ import annotations

import torch

TF32 = 2.0**-10
BFLOAT16 = 2.0**-8


def factor_rounding(device: torch.device) -> float:
    """By what share a factor may be rounded before it is multiplied on a device; 0 where float32 is kept.

    On GPUs torch uses TF32 for convolutions unless ``torch.backends.cudnn.allow_tf32`` is turned off; on CPUs it may
    use bfloat16 if ``torch.set_float32_matmul_precision("medium")`` was called.
    """
    precision = torch.get_float32_matmul_precision()
    if precision == "medium":
        return BFLOAT16
    coarse = device.type == "cuda" and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    return TF32 if coarse or precision == "high" else 0.0
