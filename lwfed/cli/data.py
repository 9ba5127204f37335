"""`lwfed data`: makes data sets from packages that people can install."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lwfed.cli.options import Json
from lwfed.drive.console import make_console, make_table, print_json
from lwfed.drive.display import Display
from lwfed.formats import left_out_text

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


@make.command("tuxpaint")
def tuxpaint(
    folder: Folder,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FOLDER", help="The unpacked package; default: where Debian installs it."),
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(
            "--languages", metavar="LIST", help="Such as en,fr,pt_BR, or all; default: the nine that are spoken."
        ),
    ] = None,
    test_fraction: Annotated[
        float, typer.Option("--test-fraction", metavar="X", help="Fraction of each class's pictures for testing.")
    ] = 0.2,
    validation_fraction: Annotated[
        float, typer.Option("--validation-fraction", metavar="X", help="The same for validation.")
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Decides the split.")] = 0,
    as_json: Json = False,
) -> None:
    """Make a table of pictures with texts and spoken descriptions in many languages, from Tux Paint's stamps.

    The stamps are Debian's package tuxpaint-stamps-default (GPL-2), which lwfed does not ship. The table has a row per
    picture and language; the site of a row is its language, its class the picture's outermost folder. All rows of a
    picture are in one split.
    """
    from lwfed.data.makers import tuxpaint

    console = make_console(stderr=True)
    with Display(console) as display:
        made = tuxpaint.make(
            folder,
            source=source,
            languages=tuxpaint.SPOKEN if languages is None else [part for part in languages.split(",") if part],
            test_fraction=test_fraction,
            validation_fraction=validation_fraction,
            seed=seed,
            progress=lambda done, total: display.files("writing pictures", done, total),
        )
    if as_json:
        print_json({"folder": str(folder), **made})
        return
    counts = ", ".join(f"{count} for {split}" for split, count in made["splits"].items())
    title = f"{folder}: {made['pictures']} pictures, {len(made['classes'])} classes, {made['rows']} rows: {counts}"
    table = make_table(title, left=("language",), right=("texts", "sounds"))
    for language, count in made["texts"].items():
        table.add_row(language, str(count), str(made["sounds"].get(language, 0)))
    make_console().print(table)
    if made["left_out"]:
        make_console().print(left_out_text(made["left_out"]))
