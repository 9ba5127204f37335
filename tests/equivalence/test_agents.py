"""Agents end in the digest of every launcher: fp32 and int8 uploads, weak clients, and a client without a modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.agents import Federation
from tests.e2e.command import write_spec
from tests.holes import LACKS, on, write_holes
from tests.nest import Nest

CLIENTS = ("client-000", "client-001", "client-002")
WEAK = [{"name": "weak", "clients": ["client-002"], "max_blocks": 1}]
SPECS: dict[str, dict[str, Any]] = {
    "alike": {"evaluation__holdout_fraction": 0.25, "evaluation__federated_every": 1, "federation__num_clients": 3},
    "weak": {
        "strategy": "progressive", "federation": {"num_clients": 3, "groups": WEAK, "require": ["client-001"]},
        "exchange": {"upload": "int8", "download": "bf16"},
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_agents_end_in_the_digest_of_any_launcher(forks: Nest, tmp_path: Path, name: str) -> None:
    spec = write_spec(tmp_path, launch__device="cpu", **SPECS[name])
    kinds = ["in_process", *(["subprocess"] if name == "alike" else [])]
    others = [
        forks.start("run", spec, "--json", f"-ostore.uri=./{kind}", f"-olaunch.kind={kind}", cwd=tmp_path)
        for kind in kinds
    ]
    federation = Federation(forks, tmp_path, str(tmp_path / "store"))
    with federation.agents(*CLIENTS, slow_s=0):
        run = federation.coordinator(spec).succeed()
    for other in others:
        assert other.succeed().json["digest"] == run.json["digest"], other.arguments
        assert other.json["metrics"] == run.json["metrics"]
        assert other.json["ledger"]["measured"] == run.json["ledger"]["measured"]
    assert "rounding error" not in run.err


@pytest.mark.slow
def test_clients_that_lack_a_modality_end_in_one_digest(forks: Nest, tmp_path: Path) -> None:
    """The sites of a table are clients, whose number only the data tell, and the one in the north hears nothing; agents
    have the table elsewhere."""
    lacks = ["audio"] * 15 + [LACKS[n % len(LACKS)] for n in range(15)]
    write_holes(tmp_path / "data", lacks=lacks)
    write_holes(tmp_path / "elsewhere", lacks=lacks)
    spec, data = write_spec(tmp_path, launch__device="cpu", stages__rounds=[1, 1]), tmp_path / "data"
    changes = [f"-o{override}" for override in on(data)]
    here = forks.start("run", spec, *changes, "--json", "-ostore.uri=./here", cwd=tmp_path)
    federation = Federation(forks, tmp_path, str(tmp_path / "store"))
    with federation.agents(*CLIENTS[:2], slow_s=0, policy={"data": {"table": str(tmp_path / "elsewhere")}}):
        run = federation.coordinator(spec, *changes).succeed()
    assert here.succeed().json["digest"] == run.json["digest"]
