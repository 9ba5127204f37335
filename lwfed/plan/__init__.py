"""The plan: pure functions from a spec to stages, names, cohorts and keys, without torch."""
