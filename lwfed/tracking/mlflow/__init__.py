"""A run in MLflow: told by a process of its own, so that a slow or dead server never holds up training."""
