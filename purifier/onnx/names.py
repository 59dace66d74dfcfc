"""Names and versions in the ONNX graphs that we write."""

from __future__ import annotations

OPSET = 18
IR_VERSION = 10
"""ONNX Runtime has read this for years; onnx's own default is newer than ONNX Runtime 1.31 accepts."""
SCORE, REJECTED, CLASSES = "purifier_score", "purifier_rejected", "purifier_classes"
NOISE, PURIFIED, BAD = "purifier_noise", "purified", "purifier_bad"
