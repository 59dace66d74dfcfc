"""AutoAttack (Croce & Hein 2020) as pyautoattack packages it, against a target: ``pyautoattack:standard``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from purifier.attacking.threat import Threat

from ._adapter import NAMES, Adapter, TargetModel

ENSEMBLES = ("standard", "plus", "rand")
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
OPTIONS = ("n_iter", "n_restarts", "n_queries", "n_target_classes", "eot_iter")
"""Attributes of the ensemble's attacks; each is set on every attack that has it."""


@dataclass(frozen=True)
class PyAutoAttackEnsemble(Adapter):
    """An ensemble of pyautoattack 0.2, or one of its attacks, on the device of the images.

    Images that one attack fools are not passed to the next. The number of target classes is at most the number of wrong
    classes. ``rand`` is the library's ensemble for random classifiers; the audit's option ``eot`` works with all of
    them. A single attack has the library's own number of restarts, five (``fab-t``, ``apgd-t`` and ``square`` one).

    Parameters
    ----------
    name
        ``standard``, ``plus``, ``rand``, or one attack: ``apgd-ce``, ``apgd-dlr``, ``apgd-t``, ``fab``, ``fab-t``,
        ``square``.
    options
        ``n_iter`` (APGD and FAB), ``n_restarts``, ``n_queries`` (Square), ``n_target_classes``, ``eot_iter``.

    Raises
    ------
    ConfigError
        pyautoattack is not installed, or has no such ensemble, attack or option.
    """

    library: ClassVar[str] = "pyautoattack"
    distribution: ClassVar[str] = "pyautoattack"
    install: ClassVar[str] = "pip install 'adversarial-purifier[pyautoattack]'"

    name: str = "standard"

    def __post_init__(self) -> None:
        self._import("pyautoattack")
        self._check_name((*ENSEMBLES, *ATTACKS))
        self._check_options(OPTIONS)
        for option, value in self.options.items():
            if not isinstance(value, int) or value < 1:
                raise self._error(f"{option} must be a whole number of at least 1, got {value!r}")
        self._declare(norms=self.norms, needs="scores" if self.name == "square" else "gradient")

    def _run(self, model: TargetModel, pixels: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        one = self.name not in ENSEMBLES
        ensemble = self._import("pyautoattack").AutoAttack(
            model,
            attacks=[self.name] if one else None,
            version="custom" if one else self.name,
            norm=NAMES[threat.norm],
            eps=threat.eps,
            seed=seed,
            device=pixels.device,
        )
        for attack in (ensemble.apgd, ensemble.apgd_targeted, ensemble.fab, ensemble.square):
            _set(attack, self.options, model.classes(pixels) - 1)
        with _tracing_kept():
            found: Tensor = ensemble.run_standard_evaluation(pixels, labels, batch_size=len(pixels))[0]
        return found


def _set(attack: Any, options: Any, targets: int) -> None:
    for option, value in options.items():
        if hasattr(attack, option):
            setattr(attack, option, value)
    if hasattr(attack, "n_target_classes"):
        attack.n_target_classes = min(attack.n_target_classes, targets)
    if hasattr(attack, "n_iter_orig"):
        # The checkpoints of APGD's step size, which the constructor has set for 100 steps.
        attack.n_iter_orig = attack.n_iter
        for name, share in (("n_iter_2", 0.22), ("n_iter_min", 0.06), ("size_decr", 0.03)):
            setattr(attack, name, max(int(share * attack.n_iter), 1))


@contextmanager
def _tracing_kept() -> Iterator[None]:
    """Restore the trace function (coverage, a debugger), which the library's check for dynamic defences removes."""
    trace = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(trace)
