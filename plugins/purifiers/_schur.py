"""Solve positive definite systems with ONNX operators only: ONNX has no Cholesky factorisation."""

from __future__ import annotations

import torch
from torch import Tensor


def solve_spd(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solve ``matrix @ x = right`` and compute log det, by block elimination (Schur complements).

    A positive definite matrix needs no pivoting (Higham 2002, section 10.1). The recursion is unrolled on export.

    Parameters
    ----------
    matrix
        (..., D, D), symmetric positive definite.
    right
        (..., D, M).

    Returns
    -------
    tuple
        x (..., D, M), and log det matrix (...).
    """
    size = matrix.shape[-1]
    if size == 1:
        return right / matrix, matrix[..., 0, 0].log()
    half = size // 2
    upper, coupling, lower = matrix[..., :half, :half], matrix[..., half:, :half], matrix[..., half:, half:]
    solved, log_det = solve_spd(upper, torch.cat([coupling.mT, right[..., :half, :]], -1))
    through, first = solved[..., : size - half], solved[..., size - half :]
    second, rest = solve_spd(lower - coupling @ through, right[..., half:, :] - coupling @ first)
    return torch.cat([first - through @ second, second], -2), log_det + rest
