"""Aggregators that may wrap the weighted mean."""
