"""Texts of specs: YAML 1.2's core schema with merge keys, or JSON. Keys are text and unique; values are plain."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import yaml

DEEPEST = 64
"""Most levels of a document; Kubernetes' affinity has about ten."""
MOST_VALUES = 100_000
"""Most values of a document: a few aliases can stand for more than fit into memory."""
LARGEST_BITS = 64
"""Bits of the largest integer, without its sign: those of a random seed."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": "null|Null|NULL|~|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
"""Type -> the plain scalars of it; https://yaml.org/spec/1.2.2/#1032-tag-resolution. All others are text."""


class _Loader(yaml.SafeLoader):
    """PyYAML with the core schema of YAML 1.2 in place of YAML 1.1's, under which `yes` is true and 010 is 8."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  # of the class, as in PyYAML

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Takes keys as they are written, and refuses duplicates, of which PyYAML would take the last."""
        node: Any = super().compose_mapping_node(anchor)
        seen = set()
        for number, (key, value) in enumerate(node.value):
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` appears twice", key.start_mark
                )
            seen.add(key.value)
            if key.tag != f"{_TAG}merge":
                node.value[number] = (yaml.ScalarNode(f"{_TAG}str", key.value, key.start_mark, key.end_mark), value)
        return node

    def flatten_mapping(self, node: Any) -> None:
        """Inserts merged keys before the mapping's own, each once: of several mappings the first with a key counts.

        PyYAML's own order depends on its version, and repeated merges grow without bound.
        """
        merged = [value for key, value in node.value if key.tag == f"{_TAG}merge"]
        own = {key.value: (key, value) for key, value in node.value if key.tag != f"{_TAG}merge"}
        node.value = list(own.values())
        found: dict[str, Any] = {}
        for value in merged:
            for mapping in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(mapping, yaml.MappingNode):
                    raise yaml.constructor.ConstructorError(
                        None, None, "`<<` takes a mapping or a list of mappings", mapping.start_mark
                    )
                self.flatten_mapping(mapping)
                for pair in mapping.value:
                    found.setdefault(pair[0].value, pair)
        node.value = list((found | own).values())

    def construct_scalar_of(self, node: yaml.ScalarNode) -> Any:
        """Returns the value of a null, bool, int or float, which a tag such as `!!int` may have named."""
        kind, text = node.tag.removeprefix(_TAG), str(self.construct_scalar(node))
        if not re.fullmatch(_SCALARS[kind], text):
            raise yaml.constructor.ConstructorError(None, None, f"`{text}` is no {kind}", node.start_mark)
        match kind:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
            case _:
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        **dict.fromkeys((f"{_TAG}null", f"{_TAG}bool", f"{_TAG}int", f"{_TAG}float"), construct_scalar_of),
        f"{_TAG}str": yaml.SafeLoader.construct_yaml_str,
        f"{_TAG}seq": yaml.SafeLoader.construct_yaml_seq,
        f"{_TAG}map": yaml.SafeLoader.construct_yaml_map,
        None: yaml.SafeLoader.construct_undefined,  # any other tag
    }


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""


for _kind, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)
    _Dumper.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)
_Loader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"<<\Z"), None)


def read_yaml(text: str) -> Any:
    """Reads YAML. Raises ValueError, with the place in one line, if it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError(f"it has more than {DEEPEST} levels") from None


def read_json(text: str) -> Any:
    """Reads JSON. Raises ValueError, with the place in one line, if it is not JSON."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"it has more than {DEEPEST} levels") from None


def write_yaml(values: Any, *, width: int) -> str:
    """Returns plain values as YAML that `read_yaml`, and readers of YAML 1.1, read as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)


def plain(value: Any) -> Any:
    """Returns a deep copy of JSON values, with all keys as text and tuples as lists.

    Raises:
        ValueError: A value has no place in JSON: the message starts with its key.
    """
    return _plain(value, (), iter(range(MOST_VALUES)))


def _plain(value: Any, path: tuple[str, ...], left: Any) -> Any:
    where = f"`{'.'.join(path[:8])}`" if path else "the document"
    if next(left, None) is None:
        raise ValueError(f"{where}: more than {MOST_VALUES} values")
    if len(path) > DEEPEST:
        raise ValueError(f"{where}: more than {DEEPEST} levels")
    match value:
        case Mapping():
            return {_plain(str(key), path, left): _plain(item, (*path, str(key)), left) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, (*path, str(number)), left) for number, item in enumerate(value)]
        case float() if not math.isfinite(value):
            raise ValueError(f"{where}: not a finite number (got {value})")
        case int() if value.bit_length() > LARGEST_BITS:
            raise ValueError(f"{where}: too large a number")
        case str() if not _is_unicode(value):
            raise ValueError(f"{where}: a character that is not allowed (got {value!a})")
        case str() | int() | float() | None:
            return value
    raise ValueError(f"{where}: neither text, a number, true, false, null, a list nor a mapping (got {value!r})")


def _is_unicode(text: str) -> bool:
    """Returns whether text has neither lone surrogates, which UTF-8 lacks, nor NUL, which paths lack."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key `{key}` appears twice")
        found[key] = value
    return found
