"""Guards and their export."""
