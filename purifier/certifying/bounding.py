"""Certificates from a purifier's own bounds: for the guard itself, without samples and without any doubt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..auditing.preparing import Prepared
from ..auditing.proofs import NO_ANSWER, Prover
from ..auditing.watching import Progress
from ..contracts.bounded import Bounded, BoundTrained
from ..vocabulary import Norm


def by_bounds(
    ready: Prepared, norm: Norm | None, budgets: Sequence[float], progress: Progress | None
) -> dict[str, Any]:
    """The fields of ``Certificates`` that bounds find; by default for the threat that the purifier was trained for.

    Raises
    ------
    ConfigError, PluginError
        As for ``Prover``, and if there are no bounds for the norm.
    """
    setup, data = ready.setup, ready.data
    prover = Prover(ready.parts, setup, data.shape, random=ready.random)
    chosen = _norm_of(prover.bounded) if norm is None else norm
    prover.check_norm(chosen)
    if not budgets and isinstance(prover.bounded, BoundTrained) and prover.bounded.trained_for[0] == chosen:
        budgets = (prover.bounded.trained_for[1],)
    answers, radii = list[int](), list[float]()
    for start in range(0, len(data), setup.batch_size):
        if progress is not None:
            progress(start, len(data), f"{start} of {len(data)} images")
        batch = setup.batch(data, range(start, min(start + setup.batch_size, len(data))))
        logits = setup.subjects["guarded"].ask(batch.pixels, setup.seed, batch.indices).logits
        given = _answers(logits)
        answers += given.tolist()
        radii += prover.radii(batch, given, chosen, budgets).tolist()
    if progress is not None:
        progress(len(data), len(data), f"{len(data)} images")
    return {
        "method": "bounds",
        "norm": chosen,
        "budgets": budgets,
        "largest_radius": max(radii),
        "notes": [],
        "answers": answers,
        "radii": radii,
    }


def _answers(logits: Tensor) -> Tensor:
    """The classes (n,) of logits (n, K); ``NO_ANSWER`` for NaN."""
    return logits.argmax(1).masked_fill(torch.isnan(logits).any(1), NO_ANSWER)


def _norm_of(purifier: Bounded) -> Norm:
    """The norm that the purifier was trained for."""
    found = purifier.trained_for[0] if isinstance(purifier, BoundTrained) else purifier.bounded_norms[0]
    return "l2" if found == "l2" else "linf"
