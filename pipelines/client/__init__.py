"""The commands for a Kubeflow Pipelines server, and the connection they share."""
