"""What the user asks for: a frozen, complete value read from YAML, a preset and dotted overrides."""
