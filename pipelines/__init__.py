"""The pipeline of an experiment: built, compiled, submitted, rerun."""
