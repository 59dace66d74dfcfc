"""What can go wrong in an epoch, and how it is explained."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..errors import PurifierError, TrainingError
from ..foreign_code import explained
from ..torch_tools.memory_need import out_of_memory


class NotFinite(Exception):
    """The loss, a weight or the optimizer's state is NaN or infinite; the message says which."""


def explains_itself(problem: BaseException) -> bool:
    """Whether training handles an exception as it is: one of our errors, or out of memory."""
    return isinstance(problem, PurifierError | NotFinite) or out_of_memory(problem)


def explained_in(epoch: int) -> AbstractContextManager[None]:
    """Turn exceptions of the purifier and classifier into a ``TrainingError``."""
    return explained(
        f"purifier or classifier failed in epoch {epoch}", TrainingError, "fix it", passing=explains_itself
    )


def check_finite(rows: Sequence[Tensor], names: Sequence[str], epoch: int, steps_before: int) -> None:
    """Raise unless the loss terms of each step, (terms,), are finite; ``steps_before`` came before them in the epoch.

    Raises
    ------
    NotFinite, TrainingError
        They are not; a ``TrainingError`` if that was so from the first step, when no learning rate is to blame.
    """
    stacked = torch.stack(list(rows))
    bad = (~stacked.isfinite()).any(1).nonzero().flatten().tolist()
    if bad:
        step = steps_before + bad[0] + 1
        values = (f"{name} {value:g}" for name, value in zip(names, stacked[bad[0]].tolist(), strict=True))
        found = f"the loss is not finite at epoch {epoch}, step {step} ({', '.join(values)})"
        if epoch == step == 1:
            raise TrainingError(
                f"{found}, before anything was learned: lower the weight of that term, or fix what computes it"
            )
        raise NotFinite(found)
