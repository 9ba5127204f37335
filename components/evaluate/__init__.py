"""The component, under its own name."""

from components.evaluate.component import evaluate as evaluate
