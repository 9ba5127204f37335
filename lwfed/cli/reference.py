"""Generates the reference pages of the documentation from the spec's fields and the commands: `make docs`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from lwfed.agent.policy import Policy
from lwfed.cli.clients_page import clients_page
from lwfed.cli.main import app
from lwfed.spec.base import Section
from lwfed.spec.run import RunSpec
from lwfed.types.errors import EXIT_CODES, FINAL_CODES

WORDS = {
    "integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null",
    "object": "mapping",
}  # fmt: skip
"""A JSON schema's type, in the reference's words."""
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
GENERATED = "<!-- Written by `make docs` from the code; edit the code. -->"


def spec_reference() -> str:
    """Returns docs/spec.md: every key of a spec, with its type, default and meaning."""
    lines = [
        GENERATED,
        "# The spec",
        "",
        "A spec is a YAML file: YAML 1.2's core schema with merge keys, so that `yes` is text and `010` is 10. "
        "Every key has a default, so a spec can be as short as one line; an empty one is refused. `-o KEY=VALUE` "
        "changes one key from the command line; the value is YAML: "
        "`-o training.batch_size=64 -o stages.rounds='[2, 2, 2]'`. No value is taken for another type, except an "
        "integer for a number. lwfed rejects unknown keys and suggests the nearest "
        "known one. A run stores its complete spec, including the "
        "defaults; `lwfed show RUN` prints it.",
        "",
    ]
    described: dict[type[Section], str] = {}
    for path, kind in _sections(RunSpec, ""):
        lines += [f"## {f'`{path}`' if path else 'Top level'}", "", _first_line(kind), ""]
        if kind in described:
            lines += [f"It has the same keys as `{described[kind]}`.", ""]
            continue
        described[kind] = path
        schemas = kind.model_json_schema(by_alias=False)["properties"]
        rows = [_row(name, field, schemas[name]) for name, field in kind.fields().items()]
        lines += _table(("key", "type", "default", "meaning"), rows)
    return "\n".join(lines).rstrip() + "\n"


def policy_table() -> str:
    """Returns the keys of an agent's policy as the table of docs/agents.md."""
    schemas = Policy.model_json_schema(by_alias=False)["properties"]
    rows = [_row(name, field, schemas[name]) for name, field in Policy.fields().items()]
    return "\n".join(_table(("key", "type", "default", "meaning"), rows))


def cli_reference() -> str:
    """Returns docs/cli.md: every command with its arguments and options, and the exit codes."""
    root: Any = typer.main.get_command(app)
    lines = [
        GENERATED,
        "# The command line",
        "",
        "`lwfed --help` and `lwfed COMMAND --help` say the same. SPEC is a YAML file or the name of a preset; without "
        "it, commands use the built-in experiment. With `--json` the last line of standard output is one JSON object, "
        "and progress goes to standard error. `LWFED_DEBUG=1` shows the traceback behind an error.",
        "",
    ]
    for name, command in _commands(root):
        usage = [p.metavar for p in command.params if p.param_type_name == "argument"]
        lines += [f"## `{' '.join(['lwfed', name, *usage])}`", "", _paragraphs(command.help), ""]
        options = [p for p in command.params if p.param_type_name == "option"]
        if options:
            rows = [(f"`{', '.join([*p.opts, *p.secondary_opts])}{_metavar(p)}`", _cell(p.help or "")) for p in options]
            lines += _table(("option", "meaning"), rows)
    lines += [
        "## Exit codes",
        "",
        "An error prints one line on standard error, `error: PROBLEM -> REMEDY`, and returns one of these codes. "
        f"lwfed does not retry after {', '.join(map(str, sorted(FINAL_CODES)))}, since the same error would follow.",
        "",
    ]
    lines += _table(("code", "meaning"), [(str(code), name) for code, name in sorted(EXIT_CODES.items())])
    return "\n".join(lines).rstrip() + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "spec.md": spec_reference,
    "cli.md": cli_reference,
    "clients.md": partial(clients_page, GENERATED),
}


def main(folder: str = "docs") -> None:
    """Writes the pages to a folder."""
    for name, write in PAGES.items():
        (Path(folder) / name).write_text(write(), encoding="utf-8")


def _commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the commands of a group, and those of its subgroups with both names."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


def _sections(kind: type[Section], path: str) -> Iterator[tuple[str, type[Section]]]:
    """Yields each section of a spec with its dotted path, outer sections first."""
    yield path, kind
    for name, field in kind.fields().items():
        below = f"{path}.{name}" if path else name
        in_mapping = get_origin(field.annotation) is dict
        found = list(_models(field.annotation))
        for model in found:
            place = f"{below}.<name>" if in_mapping else below
            if len(found) > 1:
                place += f" (kind: {model.model_fields['kind'].default})"
            yield from _sections(model, place)


def _models(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _row(name: str, field: FieldInfo, schema: Mapping[str, Any]) -> tuple[str, ...]:
    key = f"`{name}`"
    if isinstance(field.validation_alias, AliasChoices):
        others = [str(choice) for choice in field.validation_alias.choices if choice != name]
        key += "".join(f" or `{other}`" for other in others)
    limits = [
        f", {words} {part[limit]:g}"
        for part in schema.get("anyOf", [schema])
        for limit, words in LIMITS.items()
        if limit in part
    ]
    meaning = field.description or " Or: ".join(map(_first_line, _models(field.annotation)))
    return key, _type(schema) + "".join(limits), _default(field), _cell(meaning)


def _type(schema: Mapping[str, Any]) -> str:
    """Returns a value's type in words, from its JSON schema."""
    match schema:
        case {"enum": choices}:
            return " / ".join(f"`{choice}`" for choice in choices)
        case {"const": choice}:
            return f"`{choice}`"
        case {"$ref": _} | {"oneOf": _} | {"anyOf": [{"$ref": _} | {"oneOf": _}, *_]}:
            return "section"
        case {"anyOf": kinds}:
            return " or ".join(map(_type, kinds))
        case {"type": "array", "items": item}:
            kind = _type(item)
            return f"list of {kind}" if kind.endswith("`") else f"list of {kind}s"
        case {"type": "object", "additionalProperties": {"$ref": _}}:
            return "mapping of sections"
        case {"type": "object", "additionalProperties": dict() as item}:
            return f"mapping to {_type(item)}"
    return WORDS[schema["type"]]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, dict) and any(isinstance(item, BaseModel) for item in value.values()):
        return ", ".join(f"`{key}`" for key in value)
    if isinstance(value, tuple):
        value = [item.model_dump(exclude_unset=True) if isinstance(item, BaseModel) else item for item in value]
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _first_line(kind: type[Section]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _metavar(option: Any) -> str:
    return "" if option.is_flag else f" {option.metavar}"


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [*(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)), ""]


if __name__ == "__main__":
    main(*sys.argv[1:])
