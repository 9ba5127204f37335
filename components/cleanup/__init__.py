"""The component, under its own name."""

from components.cleanup.component import cleanup as cleanup
