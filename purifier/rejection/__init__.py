"""Unusual images: the threshold, and what a guard does above it."""
