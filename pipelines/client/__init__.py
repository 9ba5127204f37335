"""A Kubeflow Pipelines server: the connection, its runs, and uploads."""
