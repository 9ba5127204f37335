"""Follows a run to its end: what its tasks do, and why one failed."""
