"""How coarsely torch multiplies in float32, which depends on settings."""

from __future__ import annotations

import torch

from ..foreign_code import Attempt

TF32 = 2.0**-10
BFLOAT16 = 2.0**-8
ROUNDINGS = {"bf16": BFLOAT16, "medium": BFLOAT16, "tf32": TF32, "high": TF32}


def factor_rounding(device: torch.device) -> float:
    """By what share a factor may be rounded before it is multiplied on a device; 0 where float32 is kept.

    On GPUs torch uses TF32 for convolutions unless ``torch.backends.cudnn.allow_tf32`` is turned off; elsewhere it may
    use TF32 or bfloat16 after ``torch.set_float32_matmul_precision`` or with ``fp32_precision`` of its backends.
    """
    backends = torch.backends
    if device.type == "cuda":
        parts = [(backends.cudnn, "conv"), (backends.cuda, "matmul")]
    else:
        parts = [(backends.mkldnn, "conv"), (backends.mkldnn, "matmul")]
    settings = [getattr(getattr(backend, part, None), "fp32_precision", "none") for backend, part in parts]
    with Attempt((RuntimeError,)):  # torch does not tell if both kinds of settings were used; the others then say it
        settings.append(torch.get_float32_matmul_precision())
    return max(ROUNDINGS.get(setting, 0.0) for setting in settings)
