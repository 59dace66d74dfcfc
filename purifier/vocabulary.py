"""The closed sets of words that options take. Free of torch, so that ``purifier --help`` need not wait for it."""

from __future__ import annotations

from typing import Literal

Norm = Literal["linf", "l2", "l1"]
Route = Literal["exact", "bpda", "oblivious", "none"]
OnReject = Literal["ignore", "flag", "abstain", "raise", "reclassify"]
