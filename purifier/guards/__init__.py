"""Guarded classifiers and their export."""
