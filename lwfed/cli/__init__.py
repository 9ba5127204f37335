"""The command line: typer commands that parse arguments, call steps and print results, but compute nothing."""
