"""The code's version: a digest of the sources that decide numbers, and of the libraries that compute them.

What the sources mean counts, not how they read: comments, docstrings and layout may change. Which folders decide is all
that is said here. What decides no number lives outside them, and a folder of alternatives counts by those that a run
chose, so that a new encoder or data source leaves the keys of every other run as they were.
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
"""Folders and modules of lwfed whose code decides a checkpoint or a metric."""
ALTERNATIVES = ("models/encoders", "models/fusions", "data/sources", "federated/aggregators")
"""Folders of which a run uses only the modules that it names."""
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "tokenizers", "numpy", "scipy", "pillow", "soundfile")


def chosen_by(spec: RunSpec) -> frozenset[str]:
    """Returns the names of the alternatives that a run uses."""
    model = spec.model
    fusions = {model.objective.fusion} if model.objective.kind == "supervised" else set()
    encoders = {encoder.family for encoder in model.encoders.values()}
    return frozenset({spec.data.source, *encoders, *fusions, "weighted_mean", *spec.federation.wrappers})


@lru_cache(maxsize=8)
def code_version(chosen: frozenset[str]) -> str:
    """Returns the version as 64 hex digits. A stage made by other code is never mistaken for this code's.

    Args:
        chosen: Names of the alternatives in use, as `chosen_by` returns them.
    """
    return version_of(resources.files("lwfed"), chosen=chosen)


def version_of(package: Traversable, *, chosen: frozenset[str]) -> str:
    """Returns the version of an lwfed package that lies in a folder."""
    sources = {
        path: hashlib.sha256(outline(file.read_text(encoding="utf-8")).encode()).hexdigest()
        for path, file in deciding_files(package)
        if not path.startswith(ALTERNATIVES) or file.name.removesuffix(".py") in {*chosen, "__init__"}
    }
    return digest_of({"sources": sources, "libraries": {name: metadata.version(name) for name in LIBRARIES}})


def deciding_files(package: Traversable) -> Iterator[tuple[str, Traversable]]:
    """Yields every source file that can decide a number, with its path in the package."""
    for name in DECIDING:
        yield from _sources(package / name, name)


def outline(source: str) -> str:
    """Returns what a source file says without its comments, docstrings and layout; the same under any Python."""
    return repr(_outline(ast.parse(source)))


def _sources(entry: Traversable, path: str) -> Iterator[tuple[str, Traversable]]:
    if entry.is_dir():
        for child in entry.iterdir():
            yield from _sources(child, f"{path}/{child.name}")
    elif path.endswith(".py"):
        yield path, entry


def _outline(node: object) -> object:
    """Turns a syntax tree into nested tuples. Empty fields are left out: a newer Python's grammar only adds such."""
    if isinstance(node, list):
        return tuple(_outline(item) for item in _without_docstrings(node))
    if not isinstance(node, ast.AST):
        return node
    fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
    return (type(node).__name__, *((name, _outline(value)) for name, value in fields))


def _without_docstrings(body: Iterable[object]) -> Iterator[object]:
    """Leaves out strings that stand as statements: the docstrings of modules, classes, functions and constants."""
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            continue
        yield node
