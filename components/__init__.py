"""Components for Kubeflow Pipelines; each is a few lines around one of lwfed's tasks."""
