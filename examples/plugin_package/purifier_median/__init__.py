"""A median filter and a small attack for purifier."""
