"""Data sources: one file per source, found by its name."""
