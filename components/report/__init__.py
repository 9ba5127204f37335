"""The component, under its own name."""

from components.report.component import report as report
