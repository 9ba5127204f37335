"""Whatever stands in a spec, an override or a stored spec: it can be planned, or is refused with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwfed.cost.architectures import architectures_of
from lwfed.plan.stages import plan_stages, stage_key
from lwfed.run.runs import Options
from lwfed.spec.load import build_spec, load_spec, preset_names, to_values
from lwfed.spec.run import RunSpec
from lwfed.spec.stored import stored_values
from lwfed.steps.prepare import count_architecture, draft
from lwfed.store.local import LocalStore
from lwfed.types.errors import LwfedError
from tests import tiny
from tests.damage import damaged

TIMES = 100
"""Number of mutants per seed."""
WORDS = (
    "", "~", "null", "true", "yes", "0", "1", "-1", "2", "3", "0.5", "-0.0", "1e-320", "1e308", "1e999", ".nan",
    ".inf", "9223372036854775807", "9223372036854775808", "1" + "0" * 300, "1" + "0" * 400, "0x10", "0o17", "010",
    "1:30", "2020-01-01", "[]", "{}", "[0]", "[1, 2]", "[9000000000000000000, 1]",
    "[[1]]", "{a: 1}", "{kind: x}", "{<<: {a: 1}}", "'a: b'", "x",
    "'\\0'", '"\\ud83d"', '"\\e[1m"', "ä", "😀", "'   '", '"a\\nb"', "..", "/", "~/x", "~nobody/x", "s3://",
    "s3://b/../x", "file:///x", "http://", "://", "sqlite:///", "{client}", "*", "(?P<group>a", "'(?P<group>'",
    "!!python/object:os.system x", "&a [*a]", "- 1", "a" * 5_000, "cpu", "bytes", "by_group", "supervised",
    "kubernetes", "subprocess", "coco", "vit", "ast", "auto",
)  # fmt: skip
"""Scalars and small trees, as YAML."""


def chosen(items: Any, rng: np.random.Generator) -> Any:
    return items[int(rng.integers(len(items)))]


def paths_of(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from paths_of(value, f"{above}{key}.")


PATHS = sorted({*paths_of(to_values(build_spec({}))), *paths_of(tiny.VALUES), "evaluation.classes", "kubernetes.pools"})


def override(rng: np.random.Generator) -> str:
    path = chosen(PATHS, rng)
    match rng.integers(12):
        case 0:
            path += "." + chosen(PATHS, rng)
        case 1:
            path = path[: rng.integers(len(path) + 1)]
        case 2:
            path = path.rpartition(".")[0] + "." + chosen(WORDS, rng)
    return path + ("=" if rng.random() < 0.98 else "") + chosen(WORDS, rng)


def altered_text(text: str, rng: np.random.Generator) -> bytes:
    """Returns YAML with a line's value replaced, a line moved, doubled or indented, or bytes damaged."""
    lines = text.splitlines()
    for _ in range(rng.integers(1, 4)):
        n = int(rng.integers(len(lines)))
        match rng.integers(6):
            case 0 | 1 | 2:
                lines[n] = lines[n].partition(":")[0] + ": " + chosen(WORDS, rng)
            case 3:
                lines.insert(n, chosen(lines, rng))
            case 4:
                lines[n] = " " * int(rng.integers(1, 5)) + lines[n].lstrip()
            case _:
                return damaged("\n".join(lines).encode(), rng)
    return "\n".join(lines).encode()


def altered_values(tree: Any, rng: np.random.Generator, *, above: str = "") -> Any:
    """Returns a spec's values with one replaced, removed, or put under another key."""
    values = (
        None, True, 0, -1, 1, 2, 1.5, -0.0, 5e-324, 1.7e308, float("nan"), float("inf"), 2**62, 2**63, 10**300,
        10**400, "", " ",
        "\0", "\ud83d", "\x1b", "../a", "a" * 5_000, [], {}, [[]], [0], {"id": 1}, {1: 2}, {"a": {"b": [{}]}}, (), b"x",
    )  # fmt: skip
    if not isinstance(tree, dict | list) or not tree or (above and rng.random() < 0.05):
        return values[rng.integers(len(values))]
    key: Any = chosen(list(tree), rng) if isinstance(tree, dict) else int(rng.integers(len(tree)))
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    match rng.integers(8):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, list):
            copy.append(copy[key])
        case 1:
            copy[chosen(WORDS, rng)] = copy.pop(key)
        case _:
            copy[key] = altered_values(copy[key], rng, above=str(key) or "-")
    return copy


def built(build: Callable[[], RunSpec]) -> RunSpec | None:
    """Returns the spec, or None if it is refused as it should be."""
    try:
        spec = build()
    except LwfedError as error:
        message = str(error)
        assert error.exit_code in (10, 19) and error.problem and error.remedy, message
        assert message.isprintable() and len(message) < 3_000, message
        return None
    values = to_values(spec)
    assert build_spec(values) == build_spec(stored_values(values)) == spec
    assert to_values(build_spec(values)) == values
    return spec


def planned(spec: RunSpec, folder: Path) -> bool:
    """Whether the spec can be planned and drafted; if not, a remedy is named."""
    shapes = spec.data.own.get("shapes")
    if shapes is not None and max(shapes.train, shapes.test, shapes.image_size) > 64:
        spec = build_spec(to_values(spec), overrides=["data.shapes={train: 24, test: 8, image_size: 16}"])
    try:
        architectures = architectures_of(spec.model, folder=None, count=count_architecture)
        stages = plan_stages(spec, depths={m: item.depth for m, item in architectures.items()})
        for stage in stages:
            stage_key(stage, input_digest="", code_version="", data_version="")
        draft(spec, store=LocalStore(folder), options=Options(run_id="a"))
    except LwfedError as error:
        assert error.exit_code != 1 and error.remedy and str(error).isprintable(), str(error)
        return False
    return True


@pytest.mark.parametrize("seed", range(3))
def test_damaged_yaml_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    rng, path = np.random.default_rng(seed), tmp_path / "spec.yaml"
    texts = [
        (resources.files("lwfed.spec") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        for name in preset_names()
    ]
    for _ in range(TIMES):
        path.write_bytes(altered_text(chosen(texts, rng), rng))
        built(lambda: load_spec(str(path)))


@pytest.mark.parametrize("seed", range(3))
def test_overrides_are_taken_or_refused(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(TIMES):
        overrides = [override(rng) for _ in range(rng.integers(1, 4))]
        spec = built(lambda overrides=overrides: build_spec(tiny.VALUES, overrides=overrides))  # type: ignore[misc]
        if spec is not None:
            planned(spec, tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_stored_specs_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    rng, whole = np.random.default_rng(seed), to_values(build_spec(tiny.VALUES))
    for _ in range(TIMES):
        values = altered_values(whole, rng)
        spec = built(lambda values=values: build_spec(stored_values(values)))  # type: ignore[misc]
        if spec is not None:
            planned(spec, tmp_path)


IMAGE, TEXT = "model.encoders.image", "model.encoders.text"
FOUND = {
    "an image smaller than a patch": f"{IMAGE}.config.img_size=3",
    "negative heads": f"{IMAGE}.config.num_heads=-1",
    "a width of 0": f"{TEXT}.config.hidden_dim=0",
    "blocks without end": f"{TEXT}.config.n_layers=1000000000",
    "more blocks than a number": f"{TEXT}.config.n_layers=1" + "0" * 300,
    "layers without end": "model.projection.layers=1000000000",
    "a width above any float": "model.projection.hidden=1" + "0" * 300,
    "clients without end": "federation.num_clients=1000000000000",
    "rounds without end": "stages.rounds=[1000000000000, 1]",
    "a deadline beyond the clocks": "federation.round_timeout_s=1e300",
    "threads without end": "training.threads=1000000000",
    "a key that is named as a type": "supervised=1",
    "a key that is named as a type, below": "kubernetes.int=1",
    "a command for the terminal": 'model.objective.kind="\\e[1m"',
    "a command for the terminal in a path": f'{IMAGE}.weights="./\\e[1m"',
    "a long choice": "model.objective.kind=" + "a" * 5_000,
    "a long text": f"evaluation.prompts=[{'a' * 5_000}]",
    "a long override": "a" * 5_000,
}  # fmt: skip


@pytest.mark.parametrize("override", FOUND.values(), ids=FOUND)
def test_what_was_found_is_refused(override: str, tmp_path: Path) -> None:
    spec = built(lambda: build_spec(tiny.VALUES, overrides=[override]))
    assert spec is None or not planned(spec, tmp_path)


@pytest.mark.parametrize("training", [float("nan"), 0.5, 3, "x", [1], True])
def test_a_stored_section_that_is_none_is_refused(training: Any) -> None:
    assert built(lambda: build_spec(stored_values({**tiny.VALUES, "training": training}))) is None
