"""Aggregators: the weighted mean, and one file per wrapper, found by its file name."""
