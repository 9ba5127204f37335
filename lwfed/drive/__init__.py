"""Drives a run: opens its resources, runs its steps in order, shows progress and records events."""
