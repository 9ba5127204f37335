"""Loading of specs: defaults, then a preset or a YAML file, then dotted overrides; errors name the key and a remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from lwfed.spec.model import ModelSpec
from lwfed.spec.run import RunSpec
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

_VARIANT = re.compile(r"contrastive|supervised|int|float|tuple\[.*\]")
"""Parts of an error's location that are not keys but name the type, of several, that was tried."""


class _Yaml(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as in YAML 1.2 and as people write it, and in which no key repeats."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses duplicate keys, of which PyYAML silently takes the last."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key `{twice}` appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def preset_names() -> list[str]:
    """Returns the names of the presets that ship with lwfed."""
    folder = resources.files("lwfed.spec") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_spec(source: str | None = None, *, overrides: Sequence[str] = ()) -> RunSpec:
    """Reads a spec.

    Args:
        source: A YAML file or a preset's name; None for the built-in default.
        overrides: Overrides such as `training.batch_size=64`; values are YAML.

    Returns:
        The complete spec.

    Raises:
        SpecError: A key is unknown or a value does not fit.
        NotFoundError: There is no such file or preset.
    """
    return build_spec(_read(source or DEFAULT_PRESET), overrides=overrides)


def build_spec(values: Mapping[str, Any], *, overrides: Sequence[str] = ()) -> RunSpec:
    """Builds a spec from plain values and dotted overrides. Raises SpecError as `load_spec` does."""
    tree: dict[str, Any] = _copy(values)
    for text in overrides:
        key, value = _parse_override(text)
        path = key.split(".")
        if path[:2] == ["model", "encoders"] and len(path) > 2:  # changes part of an encoder and keeps the rest
            model = tree.setdefault("model", {})
            if isinstance(model, dict):
                model.setdefault("encoders", ModelSpec().model_dump(mode="json")["encoders"])
        _put(tree, path, value)
    try:
        return RunSpec.model_validate(tree)
    except ValidationError as error:
        raise SpecError(_explain(error)) from None


def to_values(spec: RunSpec) -> dict[str, Any]:
    """Returns a spec as plain JSON values, complete with its defaults."""
    return spec.model_dump(mode="json")


def _read(source: str) -> Mapping[str, Any]:
    path = Path(source)
    if source in preset_names():
        text = (resources.files("lwfed.spec") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
    elif path.is_file():
        text = _text(path)
    else:
        near = difflib.get_close_matches(source, preset_names(), n=1)
        hint = f"did you mean the preset `{near[0]}`? " if near else ""
        raise NotFoundError(
            f"there is no file or preset `{source}`", remedy=f"{hint}presets: {', '.join(preset_names())}"
        )
    try:
        values = _parse(text)
    except (yaml.YAMLError, ValueError) as error:  # such as the date 2026-99-99
        raise SpecError(f"{source} is not YAML: {' '.join(str(error).split())}", remedy="fix the file") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SpecError(f"{source} is not a mapping of keys", remedy="write keys such as `name: my-run`")
    return values


def _copy(value: Any) -> Any:
    return {str(key): _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _parse_override(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise SpecError(f"the override `{text}` has no `=`", remedy="write -o training.batch_size=64")
    try:
        return key.strip(), _parse(value)
    except (yaml.YAMLError, ValueError):
        raise SpecError(f"the value of the override `{text}` is not YAML", remedy="quote it") from None


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Yaml)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not UTF-8 text", remedy="name a YAML file") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}", remedy="name a YAML file") from None


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        child = tree.setdefault(part, {})
        if not isinstance(child, dict):
            child = tree[part] = {}
        tree = child
    ours = ALIASES.get(path[-1])
    tree[ours if ours in tree else path[-1]] = value


def _explain(error: ValidationError) -> str:
    # a value that fits none of several types has one error per type
    return "; ".join(dict.fromkeys(_explain_one(item) for item in error.errors(include_url=False)))


def _explain_one(item: Any) -> str:
    location = [str(part) for part in item["loc"] if not _VARIANT.fullmatch(str(part))]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = list(_keys(RunSpec, location[:-1]))
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{'.'.join([*location[:-1], near[0]])}`?" if near else f"known: {', '.join(known)}"
        return f"unknown key `{key}` -> {hint}"
    message = item["msg"].removeprefix("Value error, ")
    got = "" if isinstance(item["input"], dict) or "`" in message else f" (got {item['input']!r})"
    return f"`{key}`: {message}{got}" if key else message


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
    for argument in arguments:
        yield from _keys(argument, path)
