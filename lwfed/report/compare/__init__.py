"""Compares runs, grouped over seeds: quality against costs."""
