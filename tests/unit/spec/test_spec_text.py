"""Laws of a spec's text: YAML 1.2's core schema with merge keys, no value taken for another type, and nothing empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lwfed.run.specs import unpack_spec
from lwfed.spec.document import DEEPEST, read_json, read_yaml, write_yaml
from lwfed.spec.load import build_spec, load_spec, to_values
from lwfed.store.local import LocalStore
from lwfed.types.errors import SpecError
from pipelines.spec_text import spec_text
from tests.tiny import VALUES

SCALARS: list[tuple[str, Any]] = [
    ("yes", "yes"), ("No", "No"), ("on", "on"), ("OFF", "OFF"), ("y", "y"),
    ("true", True), ("False", False), ("TRUE", True), ("tRUE", "tRUE"),
    ("~", None), ("null", None), ("NULL", None), ("", None), ("nULL", "nULL"), ("None", "None"),
    ("010", 10), ("-007", -7), ("+3", 3), ("0o17", 15), ("0x1F", 31), ("0b11", "0b11"), ("1_000", "1_000"),
    ("0o8", "0o8"), ("1:30", "1:30"), ("-1:30.5", "-1:30.5"), ("\u0661", "\u0661"),
    ("1e3", 1000.0), ("1.", 1.0), (".5", 0.5), ("-12e-03", -0.012), ("1e", "1e"), (".", "."), ("1.2.3", "1.2.3"),
    (".inf", float("inf")), ("-.INF", float("-inf")), ("inf", "inf"), ("NaN", "NaN"),
    ("2026-01-31", "2026-01-31"), ("=", "="), ("'12'", "12"), ('"true"', "true"), ("!!str 12", "12"),
    ("!!float 3", 3.0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_are_those_of_the_core_schema(text: str, value: Any) -> None:
    found = read_yaml(f"key: {text}")["key"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_what_is_written_is_read_as_the_same(text: str, value: Any) -> None:
    values = {"value": value, "text": text.strip("'\""), text or "empty": [text]}
    assert read_yaml(write_yaml(values, width=40)) == values


def test_keys_are_text_as_written() -> None:
    assert read_yaml("{010: 1, yes: 2, ~: 3, 1.0: 4}") == {"010": 1, "yes": 2, "~": 3, "1.0": 4}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", {"x": 1, "y": 3}),
        ("a: &a {x: 1}\nc: &c {x: 2, z: 3}\nb: {<<: [*a, *c]}", {"x": 1, "z": 3}),
        ("a: &a {x: 1}\nb: {y: 2, <<: *a}", {"x": 1, "y": 2}),
        ("b: {<<: [{batch_size: 6}, {batch_size: 12, clip_norm: 1}]}", {"batch_size": 6, "clip_norm": 1}),
        ("b: {<<: [{<<: {batch_size: 6}}, {batch_size: 12}], name: x}", {"batch_size": 6, "name": "x"}),
        ("a: {d: {e: &e {<<: {x: 1}, x: 2}}}\nb: {<<: *e, y: 3}", {"x": 2, "y": 3}),
        ("b: {'<<': 1}", {"<<": 1}),
    ],
)
def test_merge_keys_are_merged(text: str, value: Any) -> None:
    assert read_yaml(text)["b"] == value


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2", "a: 1\n'a': 2", "a: {<<: {x: 1}, <<: {y: 2}}", "? [1]\n: 2", "a: !!binary aGk=", "a: !!set {x}",
        "a: !!python/name:os.system", "a: !!int yes", "a: !!bool yes", "a: *b", "--- 1\n--- 2", "a: \t1\n b", "\x01",
        "[" * 5000, "{a: " * 5000, "a: {<<: 1}", "a: {<<: [{x: 1}, 2]}", "a: <<\n<<: 3", "%YAML 3.0\n---\n1",
    ],
)  # fmt: skip
def test_what_is_no_yaml_is_said_in_one_line(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", '{"a": 1, "a": 2}', "[" * 100_000, "{'a': 1}"])
def test_what_is_no_json_is_an_error_of_its_value(text: str) -> None:
    with pytest.raises(ValueError):
        read_json(text)


NOT_COERCED = [
    ("federation.num_clients", "yes"), ("federation.num_clients", "true"), ("federation.num_clients", "'3'"),
    ("federation.num_clients", "1:30"), ("federation.num_clients", "3.0"), ("federation.num_clients", "1_0"),
    ("training.learning_rate", "yes"), ("training.learning_rate", "true"), ("training.learning_rate", "'1e-3'"),
    ("training.learning_rate", ".inf"), ("training.learning_rate", ".nan"), ("training.learning_rate", "1e400"),
    ("training.learning_rate", "9" * 400), ("training.learning_rates.image", "'1e-3'"),
    ("training.learning_rates.image", "[1e-3, true]"), ("training.clip_norm", "no"), ("training.local_steps", "off"),
    ("data.augment", "yes"), ("data.augment", "1"), ("data.augment", "'true'"), ("data.workers", "false"),
    ("data.shapes.train", "'24'"), ("data.shapes.train", "24.5"), ("data.shapes.seed", "true"),
    ("data.test_fraction", "'0.5'"), ("data.shapes.train", str(10**30)),
    ("stages.rounds", "[1, true]"), ("stages.rounds", "['1', 1]"), ("stages.rounds", "2"), ("stages.rounds", "{1: 1}"),
    ("name", "010"), ("name", "true"), ("name", "1.0"), ("name", "[tiny]"), ("tracking.experiment", "12"),
    ("model.objective.temperature", "true"), ("model.objective.temperature", "'1'"),
    ("model.encoders.image.blocks_per_stage", "true"), ("model.encoders.image.blocks_per_stage", "['1', 1]"),
    ("model.encoders.image.config.depth", "true"), ("model.encoders.image.config.depth", "'2'"),
    ("model.encoders.image.config.img_size", "[16, yes]"), ("model.encoders.image.config.qkv_bias", "1"),
    ("model.encoders.image.config.qkv_bias", "yes"), ("model.encoders.image.config.drop_rate", "no"),
    ("model.encoders.image.config.mlp_ratio", ".inf"), ("model.encoders.text.config.dropout", "false"),
    ("model.encoders.text.config.hidden_size", "16.0"), ("model.encoders.text.config.layer_norm_eps", "'1e-6'"),
    ("federation.aggregators", "[{kind: clipped, max_norm: '5'}]"),
    ("federation.aggregators", "[{kind: clipped, max_norm: .inf}]"),
    ("kubernetes.env", "{A: 1}"), ("kubernetes.env", "{A: yes, B: true}"),
    ("kubernetes.pools", "[{name: a, gpus: '1'}]"),
    ("kubernetes.pools", "[{name: a, affinity: {weight: .nan}}]"), ("kubernetes.heartbeat_s", "'15'"),
    ("levers.views", "yes"), ("evaluation.classes", "[1, 2]"), ("evaluation.prompts", "'{c}'"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "text"), NOT_COERCED)
@pytest.mark.parametrize("door", ["override", "file", "values", "pipeline"])
def test_no_value_is_taken_for_another_type(key: str, text: str, door: str, tmp_path: Path) -> None:
    """By every door: the key is named, and exit code 10."""
    value = read_yaml(text)
    tree: dict[str, Any] = json.loads(json.dumps(VALUES))
    *sections, last = key.split(".")
    inner = tree
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = value
    path = tmp_path / "spec.yaml"
    path.write_text(write_yaml(tree, width=100), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        match door:
            case "override":
                build_spec(VALUES, overrides=[f"{key}={text}"])
            case "file":
                load_spec(str(path))
            case "values":
                build_spec(tree)
            case _:
                unpack_spec(json.dumps(tree), store=LocalStore(tmp_path / "store"))
    assert caught.value.exit_code == 10 and (key in str(caught.value) or last in str(caught.value))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("training.learning_rate", "1", 1.0),
        ("training.learning_rates.image", "[1, 2]", (1.0, 2.0)),
        ("federation.num_clients", "010", 10),
        ("federation.num_clients", "0o12", 10),
        ("name", "yes", "yes"),
        ("name", "'010'", "010"),
        ("model.encoders.image.config.mlp_ratio", "4", 4),
        ("model.encoders.image.config.img_size", "[16, 16]", [16, 16]),
    ],
)
def test_an_integer_is_a_float_and_a_list_a_tuple(key: str, text: str, value: Any) -> None:
    found: Any = build_spec(VALUES, overrides=[f"{key}={text}"])
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["", "{}", "null", "~", "---", "# only a comment\n", "\ufeff"])
def test_an_empty_spec_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(text, encoding="utf-8")
    for overrides in ([], ["seed=1"]):
        with pytest.raises(SpecError) as caught:
            load_spec(str(path), overrides=overrides)
        assert "empty.yaml" in str(caught.value) and "lwfed presets" in caught.value.remedy
    path.write_text("seed: 3\n")
    assert load_spec(str(path)) == build_spec({"seed": 3}), "one key keeps the defaults of all others"


def test_a_pipelines_parameter_is_never_empty(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert unpack_spec(spec_text(build_spec({})), store=store) == build_spec({})
    for text in ("{}", "null", "[]", "", "1", "[" * 100_000):
        with pytest.raises(SpecError):
            unpack_spec(text, store=store)


def test_a_spec_that_an_older_version_stored_is_read() -> None:
    """Complete JSON values, in which a float may be written as an integer, and tuples are lists."""
    values = json.loads(json.dumps(to_values(build_spec(VALUES))))
    values["federation"]["round_timeout_s"] = 3600
    values["training"]["learning_rates"] = {"image": [1, 2], "text": 1}
    values["store"]["uri"] = "/data/a:b/runs"
    values["tracking"]["uri"] = "sqlite:////data/with space/mlflow.db"
    spec = build_spec(values)
    assert spec.training.learning_rates == {"image": (1.0, 2.0), "text": 1.0}
    assert build_spec(to_values(spec)) == spec


@pytest.mark.parametrize(
    "override",
    [
        "name=" + "[" * 5000, ".".join(["a"] * 5000) + "=1",
        "model.encoders.image.config.x=" + "{a: " * 500 + "}" * 500,
        "a=" + "[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), 'name="\\ud800"', "name=\udcff", "\udcff=1",
        'data.root="a\\0b"',
        "a=&a [*a]", "seed=" + "9" * 5000, "seed=0x" + "f" * 5000, "..=1", "a=: :",
        "a=[&a [1,1,1,1,1,1,1,1,1,1]" + "".join(f", &a [{','.join(['*a'] * 10)}]" for _ in range(9)) + "]",
    ],
)  # fmt: skip
def test_monsters_are_refused_at_once(override: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_spec(VALUES, overrides=[override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "uri"),
    [
        *(("store.uri", uri) for uri in (
            "s3:/bucket", "s3:bucket", "S3://bucket", "s3a://bucket", "gs://bucket", "file://x", "file:x", "'file:'",
            "file://host/x", "file:///x?y", "http://x", "ftp://x", "runs:1", "''", "' '", "hdfs:/x",
        )),
        *(("data.root", uri) for uri in ("s3://bucket", "s3:/bucket", "file:///x", "gs:x")),
        *(("tracking.uri", uri) for uri in (
            "htp://x", "http:x", "http:/x", "https:x", "sqlite:x.db", "sqlite://x.db", "s3://b", "''", "mlflow:5000",
        )),
    ],
)  # fmt: skip
def test_unknown_schemes_are_refused_by_name(key: str, uri: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_spec(VALUES, overrides=[f"{key}={uri}"])
    assert key in str(caught.value) and uri.strip("' ") in str(caught.value)
    assert str(caught.value).count(" -> ") == 1, "one remedy"


@pytest.mark.parametrize(
    ("key", "uri"),
    [
        *(("store.uri", uri) for uri in ("s3://bucket/prefix", "file:///x", "./a:b", "/a:b", "~/runs", "runs")),
        *(("data.root", uri) for uri in ("./s3:x", "/data", "data")),
        *(("tracking.uri", uri) for uri in (
            "null", "sqlite:///x y.db", "sqlite+pysqlite:///x", "http://h:1", "HTTPS://h", "postgresql+psycopg2://h/x",
            "./mlruns", "file:///x", "databricks", "databricks://profile",
        )),
    ],
)  # fmt: skip
def test_known_schemes_and_paths_are_taken(key: str, uri: str) -> None:
    build_spec(VALUES, overrides=[f"{key}={uri}"])
