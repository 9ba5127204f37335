"""A Kubeflow Pipelines server: the connection, the runs it knows, and what is uploaded to it."""
