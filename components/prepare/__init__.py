"""The component, under its own name."""

from components.prepare.component import prepare as prepare
