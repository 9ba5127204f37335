"""The states of a run's tasks: common records, and one parser for each format of Kubeflow Pipelines."""
