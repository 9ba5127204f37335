"""Fusions: one file per fusion, found by its name."""
