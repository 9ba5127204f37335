"""Drives a run: opens what it needs, runs its steps in order, shows progress and tells the trackers."""
