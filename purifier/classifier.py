"""MODEL specs -> a classifier, and any classifier -> logits from pixels."""

from __future__ import annotations
