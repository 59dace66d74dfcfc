"""Classifiers from pixels to logits."""
