"""Reports: a run's page and figures, and comparisons of runs."""
