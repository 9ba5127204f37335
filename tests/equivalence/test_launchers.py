"""Wherever clients run, the same spec ends in the same checkpoint; with several devices a client, in nearly the same."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.e2e.command import Ended, committed, succeed, together, write_spec

JUDGED = {"evaluation__federated_every": 1, "evaluation__holdout_fraction": 0.25, "stages__rounds": [1, 1]}
CLOCK = {"wall_s", "peak_rss_bytes"}


@pytest.fixture(scope="module")
def in_process_and_subprocess(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Path, Ended], tuple[Path, Ended]]:
    folder = tmp_path_factory.mktemp("launchers")
    one = write_spec(folder, name="one.yaml", **JUDGED, store__uri="./one")
    two = write_spec(folder, name="two.yaml", **JUDGED, store__uri="./two")
    outside = ("-o", "launch.kind=subprocess", "-o", "launch.parallel=2")
    ended = together(
        partial(succeed, "run", one, "--json", cwd=folder), partial(succeed, "run", two, *outside, "--json", cwd=folder)
    )
    return (folder / "one", ended[0]), (folder / "two", ended[1])


@pytest.mark.slow
def test_in_process_and_subprocess_end_in_one_digest(
    in_process_and_subprocess: tuple[tuple[Path, Ended], tuple[Path, Ended]],
) -> None:
    (one, here), (two, outside) = in_process_and_subprocess
    assert here.json["digest"] == outside.json["digest"]
    assert [stage["digest"] for stage in here.json["stages"]] == [stage["digest"] for stage in outside.json["stages"]]
    assert here.json["metrics"] == outside.json["metrics"]
    assert "federated/t2i/R@1" in here.json["metrics"] and "test/t2i/R@1" in here.json["metrics"]
    assert here.json["ledger"]["measured"] == outside.json["ledger"]["measured"]
    for pattern in ("blocks/sha256/*", "stages/*/checkpoint.json", "stages/*/rounds/*/updates/*/*.json"):
        names = [[str(path.relative_to(store)) for path in sorted(store.glob(pattern))] for store in (one, two)]
        assert names[0] == names[1] and names[0], pattern
    for update in one.glob("stages/*/rounds/*/updates/*/update.json"):
        values = [json.loads((store / update.relative_to(one)).read_bytes()) for store in (one, two)]
        for value in values:
            value["metrics"] = {key: item for key, item in value["metrics"].items() if key not in CLOCK}
        assert values[0] == values[1]


@pytest.mark.slow
def test_two_devices_a_client_train_nearly_as_one(
    in_process_and_subprocess: tuple[tuple[Path, Ended], tuple[Path, Ended]], tmp_path: Path
) -> None:
    """Sums over two ranks are rounded otherwise than sums over one, and AdamW divides a small gradient by its size.

    So the distance is taken relative to the distance trained, over all tensors; a lost negative or a BatchNorm that
    sees its own rank alone moves it to above 0.1.
    """
    spec = write_spec(tmp_path, **(JUDGED | {"stages__rounds": [1, 0], "evaluation__federated_every": 0}))
    ended = succeed("run", spec, "-o", "launch.kind=subprocess", "-o", "launch.devices=2", "--json", cwd=tmp_path)
    assert [stage["rounds"] for stage in ended.json["stages"]] == [1, 0]
    one, two = in_process_and_subprocess[0][0], tmp_path / "lwfed-runs"
    before, alone, joined = (_weights(one, 0), _weights(one, 1), _weights(two, 1))
    assert alone.keys() == joined.keys() == before.keys()
    names = [name for name, tensor in alone.items() if tensor.is_floating_point()]
    moved = sum(float((alone[name] - before[name]).double().square().sum()) for name in names) ** 0.5
    apart = sum(float((alone[name] - joined[name]).double().square().sum()) for name in names) ** 0.5
    print(f"moved {moved:.3g}, apart {apart:.3g}, ratio {apart / moved:.2g}")
    for name in names:
        print(name, float((alone[name]-joined[name]).abs().max()), float((alone[name]-before[name]).abs().max()))
    assert 0 < moved and apart < 0.02 * moved


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
