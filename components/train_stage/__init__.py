"""The component, under its own name."""

from components.train_stage.component import train_stage as train_stage
