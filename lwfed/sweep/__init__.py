"""Sweeps: many runs of one spec that differ in a few keys, chosen by a grid or a search on validation metrics."""
