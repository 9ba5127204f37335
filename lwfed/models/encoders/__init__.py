"""Encoders: one file per family, found by its name."""
