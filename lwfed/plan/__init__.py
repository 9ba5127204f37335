"""What will happen: pure functions from a spec to stages, names, cohorts and keys; no torch here."""
