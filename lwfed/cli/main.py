"""The `lwfed` command: its commands, those of plugins, and its help."""

from __future__ import annotations

from importlib import metadata

import typer

from lwfed import __version__
from lwfed.cli import agent, check, compare, data, history, plan, run, step, store, sweep
from lwfed.launch.exits import run_to_exit
from lwfed.types.errors import EXIT_CODES

HELP = """Federated multimodal learning, trained stage by stage: layer-wise, progressive or end to end.

\b
Start with:
  lwfed run                    the built-in experiment, no data or cluster needed
  lwfed plan coco-layerwise    the predicted costs of an experiment
  lwfed list                   the runs so far
  lwfed submit SPEC            run an experiment on a cluster with Kubeflow Pipelines
"""

EPILOG = "Exit codes: " + "; ".join(f"{code} {name}" for code, name in sorted(EXIT_CODES.items())) + "."

app = typer.Typer(
    help=HELP, epilog=EPILOG, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]}, add_completion=False,
)  # fmt: skip
app.command("run")(run.run)
app.command("rerun")(run.rerun)
app.command("plan")(plan.plan)
app.command("partition")(plan.partition)
app.command("compare")(compare.compare)
app.command("sweep")(sweep.sweep)
app.command("list")(history.list_runs)
app.command("show")(history.show)
app.command("report")(history.report)
app.command("export")(history.export)
app.command("presets")(plan.presets)
app.command("agent")(agent.agent)
app.command("agents")(agent.agents)
app.command("doctor")(check.doctor)
app.command("step")(step.step)
app.add_typer(data.app, name="data")
app.add_typer(store.app, name="store")
for plugin in sorted(metadata.entry_points(group="lwfed.commands"), key=lambda entry: entry.name):
    for command_name, command in plugin.load().items():
        app.command(command_name)(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lwfed {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    pass


def main() -> None:
    """Runs the command line; every error ends it with one line and a numbered exit code."""
    run_to_exit(app)
