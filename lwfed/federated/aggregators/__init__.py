"""Aggregators: the weighted mean, and one file for each that wraps another, found by the name of its file."""
