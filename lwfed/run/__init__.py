"""Runs: their records and events, the tasks of their steps, and the interface of launchers."""
