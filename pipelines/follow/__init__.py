"""Follows a run to its end: shows what its tasks do, and finds out why one failed."""
