"""The `lwfed` command: its commands, and what an error looks like."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from importlib import metadata

import typer

from lwfed import __version__, environment
from lwfed.cli import artifacts, check, compare, history, plan, run, step, store
from lwfed.types.errors import EXIT_CODES, DiskFullError, LwfedError

HELP = """Federated multimodal learning, trained stage by stage: layer-wise, progressive or end to end.

\b
Start with:
  lwfed run                    the built-in experiment, no data or cluster needed
  lwfed plan coco-layerwise    what an experiment will cost, before it runs
  lwfed list                   what has run
  lwfed submit SPEC            run it on a cluster with Kubeflow Pipelines
"""

EPILOG = "Exit codes: " + "; ".join(f"{code} {name}" for code, name in sorted(EXIT_CODES.items())) + "."

INTERRUPTED = "interrupted -> what is committed stands; run it again to go on"

app = typer.Typer(
    help=HELP, epilog=EPILOG, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]}, add_completion=False,
)  # fmt: skip
app.command("run")(run.run)
app.command("rerun")(run.rerun)
app.command("plan")(plan.plan)
app.command("partition")(plan.partition)
app.command("compare")(compare.compare)
app.command("list")(history.list_runs)
app.command("show")(history.show)
app.command("report")(artifacts.report)
app.command("export")(artifacts.export)
app.command("presets")(plan.presets)
app.command("doctor")(check.doctor)
app.command("step")(step.step)
app.add_typer(store.app, name="store")
for plugin in sorted(metadata.entry_points(group="lwfed.commands"), key=lambda entry: entry.name):
    for command_name, command in plugin.load().items():
        app.command(command_name)(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lwfed {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    pass


def main(command: Callable[[], object] = app) -> None:
    """Runs the command line, or another command; every error ends in one line and a numbered exit code."""
    environment.quiet()
    try:
        command()
    except LwfedError as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        _end(INTERRUPTED, 130)
    except SystemExit as ended:
        if ended.code == 130:  # what typer makes of an interrupt
            _end(INTERRUPTED, 130)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {error.filename}" if error.filename else ""
            full = DiskFullError(f"no space is left{where}", remedy="free some space and run it again to go on")
            _end(str(full), full.exit_code)
        _unexpected(error)
    except Exception as error:
        _unexpected(error)


def _unexpected(error: Exception) -> None:
    _end(f"{type(error).__name__}: {error} -> this is a fault of lwfed; LWFED_DEBUG=1 shows where", 1)


def _end(message: str, code: int) -> None:
    if environment.debug():
        traceback.print_exc()
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.stderr.flush()
    sys.exit(code)
