"""Wherever clients run, a spec ends in the same checkpoint; with several devices a client, in nearly the same."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.e2e.command import Ended, committed, succeed, together, write_spec

CLOCK = {"wall_s", "peak_rss_bytes"}
RATE = 0.01 * 8 / 256
"""The learning rate in force; one step is taken, and AdamW moves each weight by it at most."""
NO_GRADIENT = (
    "image.norm.bias",  # a shift that the next BatchNorm takes away
    "text.blocks.0.output_layer_norm.bias",
    "text.blocks.0.attention.k_lin.bias",  # a shift that the softmax takes away
)
"""Their gradient is zero but for rounding, and AdamW divides it by its own size: they move by the rate, anywhere."""


class Ran(NamedTuple):
    here: Ended
    outside: Ended
    joined: Ended
    folder: Path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One spec in this process, in processes of its clients, and (its first stage) with two devices a client."""
    folder = tmp_path_factory.mktemp("launchers")

    def run(name: str, *options: str, **changes: object) -> partial[Ended]:
        spec = write_spec(
            folder,
            name=f"{name}.yaml",
            store={"uri": f"./{name}", "keep_rounds": 0},
            **{"evaluation__holdout_fraction": 0.25, "stages__rounds": [1, 1], **changes},
        )
        return partial(succeed, "run", spec, *(f"-olaunch.{option}" for option in options), "--json", cwd=folder)

    ended = together(
        run("outside", "kind=subprocess", "parallel=2", evaluation__federated_every=1),
        run("here", evaluation__federated_every=1),
        run("joined", "kind=subprocess", "devices=2", stages__rounds=[1, 0]),
    )
    return Ran(outside=ended[0], here=ended[1], joined=ended[2], folder=folder)


@pytest.mark.slow
def test_in_process_and_subprocess_end_in_one_digest(ran: Ran) -> None:
    here, outside = ran.here.json, ran.outside.json
    assert here["digest"] == outside["digest"]
    assert [stage["digest"] for stage in here["stages"]] == [stage["digest"] for stage in outside["stages"]]
    assert here["metrics"] == outside["metrics"]
    assert {"federated/t2i/R@1", "test/t2i/R@1"} <= here["metrics"].keys()
    assert here["ledger"]["measured"] == outside["ledger"]["measured"]
    one, two = ran.folder / "here", ran.folder / "outside"
    for pattern in ("blocks/sha256/*", "stages/*/checkpoint.json", "stages/*/rounds/*/updates/*/*.json"):
        names = [[str(path.relative_to(store)) for path in sorted(store.glob(pattern))] for store in (one, two)]
        assert names[0] == names[1] and names[0], pattern
    for update in committed(one, "rounds/*/updates/*/update.json"):
        assert _timeless(update) == _timeless(two / update.relative_to(one))


@pytest.mark.slow
def test_clients_that_are_not_alike_end_in_one_digest_wherever_they_train(tmp_path: Path) -> None:
    groups = [{"name": "weak", "clients": ["client-002"], "max_blocks": 1}]
    changes: dict[str, object] = {
        "strategy": "progressive",
        "stages__rounds": [1, 2],
        "federation": {"num_clients": 3, "groups": groups, "require": ["client-001"]},
        "exchange": {"upload": "int8", "download": "bf16"},
    }
    spec = write_spec(tmp_path, **changes)
    runs = [
        partial(succeed, "run", spec, *(f"-o{option}" for option in (f"store.uri=./{kind}", f"launch.kind={kind}")),
                "--json", cwd=tmp_path)
        for kind in ("in_process", "subprocess")
    ]  # fmt: skip
    here, outside = (ended.json for ended in together(*runs))
    assert here["digest"] == outside["digest"] and here["ledger"]["measured"] == outside["ledger"]["measured"]
    kinds = [stage["ledger"]["kinds"] for stage in here["stages"]]
    assert kinds == [stage["ledger"]["kinds"] for stage in outside["stages"]] and set(kinds[-1]) == {"weak", "others"}


@pytest.mark.slow
def test_two_devices_a_client_train_nearly_as_one(ran: Ran) -> None:
    """Sums over two ranks are rounded otherwise than sums over one; 1e-6 is a 300th of what a weight moves.

    Lost negatives, or a BatchNorm that sees its own rank alone, move a quarter of the weights or more beyond it.
    """
    assert [stage["rounds"] for stage in ran.joined.json["stages"]] == [1, 0]
    before, alone = _weights(ran.folder / "here", 0), _weights(ran.folder / "here", 1)
    joined = _weights(ran.folder / "joined", 1)
    assert before.keys() == alone.keys() == joined.keys()
    assert any(float((alone[name] - before[name]).abs().max()) > 0.9 * RATE for name in alone if "running" not in name)
    far, count = 0, 0
    for name, tensor in alone.items():
        apart = (tensor.double() - joined[name].double()).abs()
        assert float(apart.max()) <= max(2.01 * RATE, 1e-5 * float(tensor.double().abs().max())), name
        if name not in NO_GRADIENT:
            far, count = far + int((apart > 1e-6 + 1e-5 * tensor.double().abs()).sum()), count + tensor.numel()
    assert far <= 5e-3 * count  # a weight here and there whose gradient is zero, as of an input that GELU shuts off


def _timeless(path: Path) -> dict[str, object]:
    value = json.loads(path.read_bytes())
    value["metrics"] = {key: item for key, item in value["metrics"].items() if key not in CLOCK}
    return dict(value)


def _weights(store: Path, server_round: int) -> dict[str, Tensor]:
    """Reads the global model of stage 1 after a round."""
    (path,) = [
        path
        for path in committed(store, f"rounds/{server_round:03d}/checkpoint.json")
        if json.loads((path.parents[2] / "plan.json").read_bytes())["plan"]["stage"] == 1
    ]
    tensors: dict[str, Tensor] = {}
    for block in json.loads(path.read_bytes())["blocks"].values():
        tensors |= load_file(store / "blocks" / "sha256" / f"{block['digest']}.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    return tensors
