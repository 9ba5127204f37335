"""The spec: one complete, frozen description of an experiment, from YAML, a preset and dotted overrides."""
