"""The closed sets of words that options take; free of torch, so that the command line can show them at once."""

from __future__ import annotations

from typing import Literal

Norm = Literal["linf", "l2", "l1"]


Route = Literal["exact", "bpda", "oblivious", "none"]
