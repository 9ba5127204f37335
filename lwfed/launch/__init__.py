"""Launchers: where a round's clients run."""
