"""Aggregators that can wrap the weighted mean."""
