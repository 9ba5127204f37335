"""The pipeline of an experiment: built, compiled, submitted, followed, rerun."""

PIPELINE = "lwfed-experiment"
"""Its name is constant: Kubeflow Pipelines keep their cache by it."""
DESCRIPTION = "Federated multimodal learning, stage by stage (lwfed)"
