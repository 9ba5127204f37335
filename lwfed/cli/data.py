"""`lwfed data`: makes data sets from packages that people can install."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lwfed.cli.options import Json
from lwfed.drive.console import make_console, make_table, print_json

app = typer.Typer(help="Make data sets from packages.", no_args_is_help=True, rich_markup_mode=None)
make = typer.Typer(help="Write a data set to a folder.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(make, name="make")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.")]


@make.command("watch")
def watch(
    folder: Folder,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PLACE",
            help="seglearn's wheel, its folder or one of these; default: where it is installed.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make windows of a smartwatch's accelerometer and gyroscope, from the data set in the Python package seglearn.

    Ten people do seven exercises of the shoulder with either arm. seglearn (BSD) is not a part of lwfed: get it by `pip
    install seglearn==1.2.5`, or `pip download --no-deps seglearn==1.2.5` for --from. Windows have 128 samples at 50 Hz
    and overlap by half; two people are left out for testing. The source `har` reads them, with people as subjects.
    """
    from lwfed.data.makers import watch

    made = watch.make(folder, source=source)
    if as_json:
        print_json({"folder": str(folder), **made})
        return
    table = make_table(str(folder), left=("split",), right=("windows", "subjects"))
    for split, counts in made["splits"].items():
        table.add_row(split, str(counts["windows"]), str(counts["subjects"]))
    make_console().print(table)
