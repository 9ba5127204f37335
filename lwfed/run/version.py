"""The code's version: a digest of the sources that decide numbers, and of the libraries that compute them.

Comments, docstrings and layout do not count. Only the folders listed here count; code that does not affect a result
lives outside them. In a folder of alternatives only those that a run uses count, so that a new encoder or data source
does not change the keys of other runs.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable

from lwfed.spec.run import RunSpec
from lwfed.types.canonical import digest_of

DECIDING = ("types", "params.py", "ranks.py", "plan", "models", "objectives", "federated", "data", "round")
"""Folders and modules of lwfed whose code affects a checkpoint or a metric."""
ALTERNATIVES = ("models/encoders", "models/fusions", "data/sources", "data/makers", "federated/aggregators")
"""Folders in which a run uses only the modules that its spec names; no run names a maker of data."""
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "tokenizers", "numpy", "scipy", "pillow", "soundfile")


def chosen_by(spec: RunSpec) -> frozenset[str]:
    """Returns the names of the alternatives that a run uses."""
    model = spec.model
    fusions = {model.objective.fusion} if model.objective.kind == "supervised" else set()
    encoders = {encoder.family for encoder in model.encoders.values()}
    return frozenset({spec.data.source, *encoders, *fusions, "weighted_mean", *spec.federation.wrappers})


@lru_cache(maxsize=8)
def code_version(chosen: frozenset[str]) -> str:
    """Returns the version as 64 hex digits, so that a stage made by other code is never reused.

    Args:
        chosen: Names of the alternatives in use, as returned by `chosen_by`.
    """
    return version_of(resources.files("lwfed"), chosen=chosen)


def version_of(package: Traversable, *, chosen: frozenset[str]) -> str:
    """Returns the version of an lwfed package in a folder."""
    sources = {
        path: hashlib.sha256(outline(file.read_text(encoding="utf-8")).encode()).hexdigest()
        for path, file in deciding_files(package)
        if not path.startswith(ALTERNATIVES) or file.name.removesuffix(".py") in {*chosen, "__init__"}
    }
    return digest_of({"sources": sources, "libraries": {name: metadata.version(name) for name in LIBRARIES}})


def deciding_files(package: Traversable) -> Iterator[tuple[str, Traversable]]:
    """Yields every source file that can affect a result, with its path in the package."""
    for name in DECIDING:
        yield from _sources(package / name, name)


def outline(source: str) -> str:
    """Returns a source file's syntax tree as text, without comments, docstrings and layout; equal for any Python."""
    return repr(_outline(ast.parse(source)))


def _sources(entry: Traversable, path: str) -> Iterator[tuple[str, Traversable]]:
    if entry.is_dir():
        for child in entry.iterdir():
            yield from _sources(child, f"{path}/{child.name}")
    elif path.endswith(".py"):
        yield path, entry


def _outline(node: object) -> object:
    """Converts a syntax tree to nested tuples, without empty fields: newer Pythons add only fields that are empty."""
    if isinstance(node, list):
        return tuple(_outline(item) for item in _without_docstrings(node))
    if not isinstance(node, ast.AST):
        return node
    fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
    return (type(node).__name__, *((name, _outline(value)) for name, value in fields))


def _without_docstrings(body: Iterable[object]) -> Iterator[object]:
    """Skips strings that are statements: the docstrings of modules, classes, functions and constants."""
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            continue
        yield node
