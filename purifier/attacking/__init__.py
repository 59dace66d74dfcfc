"""Threats, targets and what an attack author writes."""
