"""The states of a run's tasks, from what Kubeflow Pipelines reports."""
