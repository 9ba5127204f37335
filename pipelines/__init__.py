"""The pipeline of an experiment: builds, compiles, submits, follows and reruns it."""

PIPELINE = "lwfed-experiment"
"""The name is constant, since Kubeflow Pipelines' cache depends on it."""
DESCRIPTION = "Federated multimodal learning, stage by stage (lwfed)"
