"""Counts what is proven, and compares it with what attacks found: they must never contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..attacking.threat import Threat
from .certificate import Certificate
from .counting import PendingRow
from .proofs import key_of
from .report import Flag
from .statistics import rate


def certificates_of(proven: Mapping[str, Tensor], clean: PendingRow, threats: Sequence[Threat]) -> list[Certificate]:
    """For each threat with proofs, the share of images that are right and proven.

    Parameters
    ----------
    proven
        For each threat, by its ``key_of``, the images whose answer provably stays, bool (N,).
    clean
        The audited model's row on clean images.
    """
    right = clean.shares == 1
    return [
        Certificate(threat, "bounds", rate(int((proven[key_of(threat)] & right).sum()), len(right)))
        for threat in threats
        if key_of(threat) in proven
    ]


def broken_proofs(
    proven: Mapping[str, Tensor], clean: PendingRow, rows: Sequence[PendingRow], threats: Sequence[Threat]
) -> Iterator[Flag]:
    """Attacks that found images which a proof excludes; ``rows`` are those of attacks on the audited model."""
    for threat in (one for one in threats if key_of(one) in proven):
        certified = proven[key_of(threat)] & (clean.shares == 1)
        for row in rows:
            if row.error or row.threat is None or row.threat.norm != threat.norm or row.threat.eps > threat.eps:
                continue
            fooled = certified & (row.shares < 1)
            if fooled.any():
                which = ", ".join(map(str, torch.nonzero(fooled)[:3, 0].tolist()))
                yield Flag(
                    "certificate-broken",
                    f"{row} fools {int(fooled.sum())} of {int(certified.sum())} images that are certified at {threat}, "
                    f"among them {which}",
                )
                break
