"""`lwfed compile`: a file that a cluster takes, or an error that says what to change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from lwfed.run.specs import MARK, unpack_spec
from lwfed.store.local import LocalStore
from lwfed.types.errors import SpecError
from pipelines import compile as compiling
from pipelines.commands.compile import compile_command
from pipelines.compile import OBJECT_LIMIT, for_cluster, size_warning
from tests.components.compiled import CLUSTER, cluster_spec, compiled, paper_spec

app = typer.Typer()
app.command()(compile_command)
SET = [f"--set={override}" for override in CLUSTER]


def test_command_writes_a_pipeline(tmp_path: Path) -> None:
    path = tmp_path / "new" / "pipeline.yaml"
    arguments = ["coco-layerwise", "-o", str(path), *SET, "--stages", "3-4", "--from", "base:3", "--json"]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["stages"] == ["stage 3: image 4-5, text 2", "stage 4: image 6-7, text 3"]
    assert told["file_bytes"] == path.stat().st_size
    pipeline = next(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    spec = unpack_spec(
        pipeline["root"]["inputDefinitions"]["parameters"]["spec"]["defaultValue"], store=LocalStore(tmp_path)
    )
    assert spec == paper_spec("launch.kind=kubernetes")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "seed=1"], "--set seed=1"),
        (["-o", "pipeline.txt"], "name it pipeline.yaml"),
        (["-o", "p.yaml", "--set", "kubernetes.image="], "kubernetes.image"),
        (["-o", "p.yaml", *SET, "--set", "store.uri=./runs"], "s3://BUCKET/PREFIX"),
        (["-o", "p.yaml", *SET, "--stages", "3-4"], "--from RUN:3"),
        (["-o", "p.yaml", *SET, "--stages", "3-9", "--from", "base:3"], "stages 1 to 6"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["coco-layerwise", *arguments])
    assert isinstance(ended.exception, SpecError) and words in str(ended.exception)
    assert not list(tmp_path.iterdir())


def test_clients_are_pods_unless_the_spec_says_otherwise() -> None:
    assert for_cluster(cluster_spec()).launch.kind == "kubernetes"
    assert for_cluster(cluster_spec("launch.kind=subprocess")).launch.kind == "subprocess"


def test_a_pool_that_does_not_fit_is_refused() -> None:
    with pytest.raises(SpecError, match=r"launch\.devices"):
        for_cluster(cluster_spec("kubernetes.pools=[{name: gpu, gpus: 2}]"))


def test_a_long_spec_is_written_to_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path / "store")
    monkeypatch.setattr(compiling, "open_store", lambda uri: store)
    clients = [f"client-{number:04d}" for number in range(3000)]
    long = cluster_spec("federation.num_clients=3000", f"kubernetes.pools=[{{name: all, clients: {clients}}}]")
    done, pipeline, _ = compiled(long, tmp_path)
    text = pipeline["root"]["inputDefinitions"]["parameters"]["spec"]["defaultValue"]
    assert text.startswith(MARK) and unpack_spec(text, store=store) == done.spec
    assert done.file_bytes < 64 * 1024 and "s3" not in text


def test_the_limit_is_on_stages_and_the_spec_they_repeat(tmp_path: Path) -> None:
    long = "kubernetes.env={" + ", ".join(f"KEY_{number}: '{'x' * 1000}'" for number in range(8)) + "}"
    whole, _, _ = compiled(paper_spec(long), tmp_path)
    one, _, _ = compiled(paper_spec(long), tmp_path, stages=[1])
    short, _, _ = compiled(paper_spec(), tmp_path)
    assert whole.object_bytes == 2 * one.object_bytes > OBJECT_LIMIT > short.object_bytes  # ten tasks, and five
    warning = size_warning(whole)
    assert warning is not None and "6 stages" in warning and "--stages" in warning and "2.60 MB" in warning
    assert size_warning(short) is None


def test_a_pipeline_above_the_limit_is_compiled_and_says_so(tmp_path: Path) -> None:
    clients = [f"client-{number:04d}" for number in range(700)]
    pools = f"--set=kubernetes.pools=[{{name: all, clients: {clients}}}, {{name: rest}}]"
    many = ["--set=federation.num_clients=800", pools, "--json"]
    ended = CliRunner().invoke(app, ["coco-layerwise", "-o", str(tmp_path / "pipeline.yaml"), *SET, *many])
    assert ended.exit_code == 0, ended.output
    values = json.loads(ended.stdout.splitlines()[-1])
    assert values["workflow_bytes"] > OBJECT_LIMIT and "etcd" in ended.stderr and values["pods"] == 22
