"""Certificates from a purifier's own bounds: for the guard itself, without samples and without any doubt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from ..attacking.threat import Threat
from ..auditing.preparing import Prepared
from ..auditing.proofs import Prover
from ..auditing.watching import Progress
from ..contracts.bounded import BoundTrained
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
    trained = prover.bounded.trained_for if isinstance(prover.bounded, BoundTrained) else None
    wanted = norm or (prover.bounded.bounded_norms if trained is None else trained)[0]
    chosen: Norm = next((known for known in get_args(Norm) if known == wanted), "linf")
    prover.check_norm(chosen)
    budgets = sorted(Threat(chosen, budget).eps for budget in budgets)
    if not budgets and trained is not None and trained[0] == chosen:
        budgets = [trained[1]]
    answers, radii = list[int](), list[float]()
    for start in range(0, len(data), setup.batch_size):
        if progress is not None:
            progress(start, len(data), f"{start} of {len(data)} images")
        batch = setup.batch(data, range(start, min(start + setup.batch_size, len(data))))
        given = setup.subjects["guarded"].ask(batch.pixels, setup.seed, batch.indices).answers
        answers += given.tolist()
        radii += prover.radii(batch, given, chosen, budgets).tolist()
    if progress is not None:
        progress(len(data), len(data), f"{len(data)} images")
    return {
        "method": "bounds",
        "norm": chosen,
        "budgets": tuple(budgets),
        "largest_radius": max(radii),
        "notes": [],
        "answers": answers,
        "radii": radii,
    }
