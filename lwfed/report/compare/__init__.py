"""Runs compared: grouped over seeds, by quality against what they cost."""
