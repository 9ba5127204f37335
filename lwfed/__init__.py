"""lwfed: resource-efficient federated multimodal learning, stage by stage."""

__version__ = "0.1.0"
