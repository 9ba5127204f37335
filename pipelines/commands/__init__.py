"""What each command for Kubeflow Pipelines does, from an access to its last line."""
