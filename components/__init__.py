"""Kubeflow Pipelines components: each is a few lines around a step of lwfed."""
