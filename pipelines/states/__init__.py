"""What the tasks of a run do: one record of it, and one reader for each way in which Kubeflow Pipelines say it."""
