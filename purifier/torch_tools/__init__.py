"""Torch housekeeping; nothing here knows about purifying."""
