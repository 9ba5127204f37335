"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lwfed.spec.federation import StoreSpec
from lwfed.types.errors import SpecError

Spec = Annotated[
    str | None, typer.Argument(metavar="[SPEC]", help="A YAML file, a preset or PRESET@VARIANT; see `lwfed presets`.")
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or `latest`.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="Change a key: -o seed=1."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Train again even if equal work is committed.")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object as the last line, and progress to stderr.")]
StoreUri = Annotated[str, typer.Option("--store", metavar="URI", help="The store to read.")]
DEFAULT_STORE = StoreSpec().uri


def parse_seeds(text: str | None, *, default: int) -> Sequence[int]:
    """Reads `0,1,2`, each seed once. Raises SpecError if one is no number."""
    try:
        return [default] if text is None else list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise SpecError(f"`{text}` is not a list of seeds", remedy="write --seeds 0,1,2") from None


def output_folder(path: Path) -> Path:
    """Returns a folder to write to, made if it is missing. Raises SpecError if it is a file."""
    if path.exists() and not path.is_dir():
        raise SpecError(f"{path} is a file", remedy="name a folder with --output")
    path.mkdir(parents=True, exist_ok=True)
    return path
