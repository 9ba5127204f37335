"""Presets and variants are planned; presets and a variant of each kind are compiled, and most of these run, reduced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lwfed.cost.architectures import architectures_of
from lwfed.cost.ledger import stage_costs
from lwfed.launch.in_process import InProcess
from lwfed.plan.stages import plan_stages
from lwfed.spec.load import build_spec, load_spec, preset_names, to_values
from lwfed.spec.run import RunSpec
from lwfed.spec.variants import all_variants, variant_names
from lwfed.steps.experiment import run_stages
from lwfed.steps.prepare import count_architecture
from lwfed.store.local import LocalStore
from pipelines.compile import compile_pipeline
from pipelines.stages import Work
from tests.components.compiled import CLUSTER
from tests.e2e.own_data import write_advance, write_coco
from tests.events import ignore
from tests.tiny import prepared

SOURCES = ("coco", "advance", "shapes")
PRESETS = [name for name in preset_names() if load_spec(name).data.source in SOURCES]
NAMES = [*PRESETS, *variant_names()]
ONE_OF_EACH = [f"{group.of[-1]}@{next(iter(group.variants))}" for group in all_variants()]
"""A variant of each group."""
SMALL: dict[str, dict[str, Any]] = {
    "image": {"depth": 2, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 1},
    "text": {"n_layers": 2, "vocab_size": 384, "dim": 16, "hidden_dim": 16, "n_heads": 2},
    "audio": {
        "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "max_length": 72,
    },
}  # fmt: skip
"""Modality -> settings of a small encoder."""


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Source -> its data, enough for four clients."""
    folder = tmp_path_factory.mktemp("data")
    write_coco(folder / "coco", train=17, test=4)
    write_advance(folder / "advance", pairs=12)
    return {"coco": str(folder / "coco"), "advance": str(folder / "advance"), "shapes": None}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """A store for all runs, so that files are checked once."""
    return LocalStore(tmp_path_factory.mktemp("store"))


def reduced(spec: RunSpec, *, root: str | None) -> RunSpec:
    """Returns a spec of two stages with small encoders, one round in the last, on four clients' small data."""
    values = to_values(spec)
    for modality, encoder in values["model"]["encoders"].items():
        encoder["config"] |= SMALL[modality]
        encoder["blocks_per_stage"] = 1
    values["model"]["projection"]["hidden"] //= 64
    values["model"]["projection"]["out"] //= 32
    values["stages"]["rounds"] = [0, 1]
    rates = values["training"]["learning_rates"]
    for group, rate in rates.items():
        rates[group] = rate[-2:] if isinstance(rate, list) else rate
    values["training"]["local_epochs"] = 1
    values["federation"]["num_clients"] = 4
    values["data"] |= {"root": root, "workers": 0} | ({} if root else {"shapes": {"train": 24, "test": 8}})
    values["tracking"]["uri"] = None
    return build_spec(values, overrides=["launch.device=cpu"])


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_planned(name: str) -> None:
    spec = load_spec(name)
    architectures = architectures_of(spec.model, folder=None, count=count_architecture)
    plans = plan_stages(spec, depths={modality: item.depth for modality, item in architectures.items()})
    assert sum(plan.rounds for plan in plans) == sum(spec.stages.rounds)
    assert all(cost.peak_bytes > 0 for cost in stage_costs(plans, architectures=architectures, num_classes=13))


@pytest.mark.parametrize("name", [*PRESETS, *ONE_OF_EACH])
def test_a_preset_is_compiled(name: str, tmp_path: Path) -> None:
    compile_pipeline(Work(load_spec(name, overrides=CLUSTER)), tmp_path / "pipeline.yaml")
    assert (tmp_path / "pipeline.yaml").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PRESETS, *ONE_OF_EACH[:6]])
def test_a_preset_runs(name: str, roots: dict[str, str | None], store: LocalStore, tmp_path: Path) -> None:
    spec = load_spec(name)
    small = reduced(spec, root=roots[spec.data.source])
    run = prepared(small, store=store)
    summary = run_stages(run, launcher=InProcess(store), store=store, emit=ignore, cache=tmp_path)
    assert summary.digest and summary.status == "finished"
    assert tuple(run.data.clients) == small.federation.eligible_ids
