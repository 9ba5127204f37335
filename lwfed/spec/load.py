"""Loading of specs: defaults, a preset with its variants or a YAML file, dotted overrides; errors name the key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from lwfed.spec.document import plain, read_json, read_yaml
from lwfed.spec.model import ModelSpec
from lwfed.spec.run import MOST_NAME_CHARS, RunSpec
from lwfed.spec.stored import stored_values
from lwfed.spec.variants import MARK, variant_names, variants_of
from lwfed.types.errors import NotFoundError, SpecError
from lwfed.types.section import Section

ALIASES = {
    "fraction_train": "fraction_fit",
    "min_train_nodes": "min_fit_clients",
    "min_available_nodes": "min_available_clients",
    "beta": "alpha",
}
"""Other tools' names of keys -> lwfed's, for overrides of a spec that may already have lwfed's key."""
DEFAULT_PRESET = "shapes-layerwise"
LONGEST = 100
"""Most characters of a key or a value in a message."""

_KINDS = "contrastive|supervised|improvement|movement"
_VARIANT = re.compile(rf"{_KINDS}|int|(constrained-)?float|(function-before|literal|tuple)\[.*\]")
"""Parts of an error's location that are not keys but name the type, of several, that was tried."""
_WORDS = {
    "model_type": "Input should be a mapping of keys",
    "dict_type": "Input should be a mapping of keys",
    "tuple_type": "Input should be a list",
    "bool_type": "Input should be true or false",
    "string_type": "Input should be text: quote it",
}
"""pydantic's names of errors -> messages without the words of JSON."""


def preset_names() -> list[str]:
    """Returns the names of the presets that ship with lwfed."""
    folder = resources.files("lwfed.spec") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_spec(source: str | None = None, *, overrides: Sequence[str] = ()) -> RunSpec:
    """Reads a spec.

    Args:
        source: A YAML file, a preset's name, or PRESET@VARIANT, of which several are joined; None for the built-in
            default.
        overrides: Overrides such as `training.batch_size=64`; values are YAML.

    Returns:
        The complete spec.

    Raises:
        SpecError: A key is unknown or a value does not fit.
        NotFoundError: There is no such file, preset or variant.
    """
    source = DEFAULT_PRESET if source is None else source
    preset, *chosen = source.split(MARK)
    if preset not in preset_names():
        preset, chosen = source, []
    return build_spec(
        _varied(preset, _values(preset, _text(preset), read=read_yaml), chosen=chosen), overrides=overrides
    )


def parse_spec(text: str) -> RunSpec:
    """Reads a spec from JSON, as pipelines of any version pass it on. Raises SpecError as `load_spec` does."""
    return build_spec(stored_values(_values("the spec", text, read=read_json)))


def build_spec(values: Mapping[str, Any], *, overrides: Sequence[str] = ()) -> RunSpec:
    """Builds a spec from plain values and dotted overrides. Raises SpecError as `load_spec` does."""
    tree: dict[str, Any] = _plain(values)
    for text in overrides:
        key, value = _parse_override(text)
        path = key.split(".")
        if path[:2] == ["model", "encoders"] and len(path) > 2:  # changes part of an encoder and keeps the rest
            model = tree.setdefault("model", {})
            if isinstance(model, dict):
                model.setdefault("encoders", ModelSpec().model_dump(mode="json")["encoders"])
        _put(tree, path, value)
    try:
        return _validated(json.dumps(_plain(tree) if overrides else tree))
    except ValidationError as error:
        raise _explained(error) from None


@lru_cache(maxsize=64)
def _validated(text: str) -> RunSpec:
    """Validates a spec. Each step of a run reads the same one.

    In JSON a list is a tuple and an integer a float, but strictly no text is a number and no number a bool.
    """
    return RunSpec.model_validate_json(text, strict=True)


def to_values(spec: RunSpec) -> dict[str, Any]:
    """Returns a spec as plain JSON values, complete with its defaults."""
    return spec.model_dump(mode="json")


def _varied(preset: str, values: dict[str, Any], *, chosen: Sequence[str]) -> dict[str, Any]:
    """Returns a preset's values with its chosen variants, and with a name that has them.

    Raises:
        NotFoundError: The preset has no such variant.
        SpecError: Two variants change the same.
    """
    known, used = dict(variants_of(preset)), dict[int, str]()
    for name in chosen:
        group = known.get(name)
        if group is None:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean `{preset}{MARK}{near[0]}`? " if near else ""
            remedy = f"{hint}variants: {', '.join(known)}" if known else f"write `{preset}`"
            raise NotFoundError(f"the preset `{preset}` has no variant `{_short(name)}`", remedy=remedy)
        other = used.setdefault(id(group), name)
        if other != name or chosen.count(name) > 1:
            raise SpecError(f"`{other}` and `{name}` both choose the {group.about}", remedy="choose one of them")
        for key, value in group.variants[name].items():
            _put(values, key.split("."), value)
    if chosen:
        values["name"] = "-".join([preset, *chosen])[:MOST_NAME_CHARS]
    return values


def _text(source: str) -> str:
    """Reads a preset or a file."""
    if source in preset_names():
        return (resources.files("lwfed.spec") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
    try:
        return Path(source).read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(source, [*preset_names(), *variant_names()], n=1)
        hint = f"did you mean the preset `{near[0]}`? " if near else ""
        raise NotFoundError(
            f"there is no file or preset `{_short(source)}`", remedy=f"{hint}presets: {', '.join(preset_names())}"
        ) from None
    except UnicodeDecodeError:
        raise SpecError(f"{source} is not UTF-8 text", remedy="name a YAML file") from None
    except OSError as error:
        raise SpecError(f"`{source}` cannot be read: {error.strerror}", remedy="name a YAML file") from None


def _values(source: str, text: str, *, read: Callable[[str], Any]) -> dict[str, Any]:
    """Returns the keys of a document. Raises SpecError if it has none: an empty file must not start a long run."""
    try:
        values = read(text)
    except ValueError as error:
        kind = "YAML" if read is read_yaml else "JSON"
        raise SpecError(f"{source} is not {kind}: {error}", remedy="fix it") from None
    if values is None or values == {}:
        raise SpecError(
            f"{source} has no keys", remedy="write at least one, such as `name: my-run`; `lwfed presets` lists examples"
        )
    if not isinstance(values, dict):
        raise SpecError(f"{source} is not a mapping of keys", remedy="write keys such as `name: my-run`")
    return values


def _plain(values: Any) -> Any:
    try:
        return plain(values)
    except ValueError as error:
        raise SpecError(str(error), remedy="fix the value") from None


def _parse_override(text: str) -> tuple[str, Any]:
    try:
        text.encode()
    except UnicodeEncodeError:  # how Python reads bytes of an argument that its locale does not know
        raise SpecError(f"the override {text!a} is not UTF-8 text", remedy="set LC_ALL=C.UTF-8") from None
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise SpecError(f"the override `{_short(text)}` has no `=`", remedy="write -o training.batch_size=64")
    try:
        return key.strip(), read_yaml(value)
    except ValueError:
        raise SpecError(f"the value of the override `{_short(text)}` is not YAML", remedy="quote it") from None


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        child = tree.setdefault(part, {})
        if not isinstance(child, dict):
            child = tree[part] = {}
        tree = child
    ours = ALIASES.get(path[-1])
    tree[ours if ours in tree else path[-1]] = value


def _explained(error: ValidationError) -> SpecError:
    # a value that fits none of several types has one error per type
    problems, remedies = zip(*map(_explain_one, error.errors(include_url=False)), strict=True)
    return SpecError("; ".join(dict.fromkeys(problems)), remedy="; ".join(dict.fromkeys(remedies)))


def _explain_one(item: Any) -> tuple[str, str]:
    """Returns the problem and the remedy."""
    *above, last = [str(part) for part in item["loc"]] or [""]
    location = [part for part in above if not _VARIANT.fullmatch(part)]
    if item["type"] == "extra_forbidden":
        known = list(dict.fromkeys(_keys(RunSpec, location)))  # alternatives share keys
        near = difflib.get_close_matches(last, known, n=1, cutoff=0.5)
        hint = f"did you mean `{'.'.join([*location, near[0]])}`?" if near else f"known: {', '.join(known)}"
        return f"unknown key `{_short('.'.join([*location, last]))}`", hint
    key = _short(".".join(location if _VARIANT.fullmatch(last) else [*location, last]))
    message = _short(_WORDS.get(item["type"], item["msg"].removeprefix("Value error, ")), longest=4 * LONGEST)
    got = "" if isinstance(item["input"], dict) or "`" in message else f" (got {_short(repr(item['input']))})"
    message, _, remedy = message.partition(" -> ")
    named = f"`{key}`: {message}{got}" if key and not message.startswith(f"`{key}`") else message
    return named, remedy or "correct the value"


def _short(text: str, *, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _keys(kind: Any, path: Sequence[str]) -> Iterator[str]:
    """Yields the known keys below a dotted path of the spec."""
    if isinstance(kind, type) and issubclass(kind, Section):
        if not path:
            yield from kind.fields()
        elif path[0] in kind.fields():
            yield from _keys(kind.fields()[path[0]].annotation, path[1:])
        return
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        yield from _keys(arguments[1], path[1:])
        return
    if get_origin(kind) is tuple and path:
        path = path[1:]  # the number of an item
    for argument in arguments:
        yield from _keys(argument, path)
