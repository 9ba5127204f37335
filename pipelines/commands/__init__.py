"""The commands for Kubeflow Pipelines."""
