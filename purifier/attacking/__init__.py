"""Threats, targets and the base class of attacks."""
