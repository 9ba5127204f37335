"""The command line: typer commands that parse, call a step and show; nothing is computed here."""
