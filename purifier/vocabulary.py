"""The fixed sets of option values, in a module without torch so that ``purifier --help`` does not wait for it."""

from __future__ import annotations

from typing import Literal

Norm = Literal["linf", "l2", "l1"]
Route = Literal["exact", "bpda", "oblivious", "none"]
OnReject = Literal["ignore", "flag", "abstain", "raise", "reclassify"]
Needs = Literal["gradient", "latent", "scores", "labels"]
OutputKind = Literal["logits", "probabilities", "binary-logit", "binary-probability", "label"]
