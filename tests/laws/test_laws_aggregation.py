"""Laws of aggregation: on whole rounds of real clients, and tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lwfed.models.build import tensor_specs
from lwfed.round.aggregate_round import aggregate_round
from lwfed.round.workbench import Workbench
from lwfed.run.stage import Stage
from lwfed.store import paths
from lwfed.store.blocks import read_block
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
from lwfed.store.manifest import block_key
from tests.aggregating import mean_of as one_mean
from tests.tiny import RESNET, accept, begun, round_task, run_tiny, tensors_of, update_tensors

CLIENTS = ("client-000", "client-001", "client-002")
THREE = "federation.num_clients=3"
UNEVEN = ("federation.num_clients=3", "federation.partition={kind: dirichlet, alpha: 0.6, min_size: 3}")


def commit(bench: Workbench, stage: Stage, *, server_round: int = 1) -> Checkpoint:
    """Aggregates a round and reads its checkpoint."""
    digest = aggregate_round(round_task(bench, stage, server_round=server_round), bench=bench)
    checkpoint = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, server_round))
    assert checkpoint is not None and checkpoint.digest == digest
    return checkpoint


def reaccept(bench: Workbench, stage: Stage, order: tuple[str, ...], *, factor: int) -> Checkpoint:
    """Aggregates round 1 again with its accepted set written in another order and all weights times a factor."""
    accepted = bench.store.read_ref(paths.accepted(stage.key, 1))
    assert accepted is not None
    clients = {c: accepted["clients"][c] | {"num_examples": accepted["clients"][c]["num_examples"]} for c in order}
    for item in clients.values():
        item["num_examples"] *= factor
    bench.store.delete(paths.round_checkpoint(stage.key, 1))
    bench.store.write_ref(paths.accepted(stage.key, 1), {"clients": clients, "failed": {}})
    return commit(bench, stage)


def test_a_round_depends_neither_on_the_order_of_clients_nor_on_a_common_factor(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, *UNEVEN, "evaluation.every=99")
    updates = accept(bench, stage, CLIENTS[::-1])
    assert len({update["num_examples"] for update in updates.values()}) > 1, "the weights must differ to say something"
    digest = commit(bench, stage).digest
    for order in (CLIENTS, (CLIENTS[1], CLIENTS[2], CLIENTS[0])):
        for factor in (1, 7, 2**40):
            assert reaccept(bench, stage, order, factor=factor).digest == digest
    changed = bench.store.read_ref(paths.accepted(stage.key, 1))
    assert changed is not None
    changed["clients"]["client-000"]["num_examples"] += 2**40
    bench.store.delete(paths.round_checkpoint(stage.key, 1))
    bench.store.write_ref(paths.accepted(stage.key, 1), changed)
    assert commit(bench, stage).digest != digest, "the weights do count"


def test_a_round_is_the_weighted_mean_of_its_clients(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, *UNEVEN)
    updates = accept(bench, stage, CLIENTS)
    result = tensors_of(bench.store, commit(bench, stage))
    sent = {client: update_tensors(bench, stage, client) for client in CLIENTS}
    assert result.keys() == sent["client-000"].keys(), "in stage 1 everything is trained"
    for name, tensor in result.items():
        parts = {client: sent[client][name].numpy() for client in CLIENTS}
        if not tensor.is_floating_point():
            np.testing.assert_array_equal(tensor.numpy(), np.max(list(parts.values()), axis=0))
            continue
        weights = {client: updates[client]["num_examples"] for client in CLIENTS}
        total = sum((weights[c] * parts[c].astype(np.float64) for c in CLIENTS), np.zeros(tensor.shape))
        np.testing.assert_allclose(tensor.numpy(), total / sum(weights.values()), rtol=1e-7, atol=1e-12)


def test_the_aggregate_of_one_client_is_its_update(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, "federation.num_clients=1")
    accept(bench, stage, ["client-000"])
    result = tensors_of(bench.store, commit(bench, stage))
    sent = update_tensors(bench, stage, "client-000")
    assert result.keys() == sent.keys()
    for name in sent:
        assert torch.equal(bits(result[name]), bits(sent[name])), name


@pytest.mark.parametrize("value", [-0.0, 1e-45, 3.4e38, -1.1754942e-38, 0.1])
def test_the_mean_of_one_tensor_keeps_every_bit(value: float) -> None:
    tensor = torch.tensor([value, -value, 1 / 3])
    for clients in (1, 3):
        tensors = {f"client-{n:03d}": tensor for n in range(clients)}
        mean = one_mean(tensors, dict.fromkeys(tensors, 1))
        assert torch.equal(bits(mean), bits(tensor))


@pytest.mark.parametrize("encoder", [None, RESNET])
def test_batchnorm_statistics_are_averaged_and_never_meet_the_server_optimiser(
    tmp_path: Path, encoder: str | None
) -> None:
    more = () if encoder is None else (encoder,)
    bench, stage, _ = begun(tmp_path, THREE, "federation.server={kind: fedadam, eta: 0.5}", *more)
    accept(bench, stage, CLIENTS)
    checkpoint = commit(bench, stage)
    result = tensors_of(bench.store, checkpoint)
    specs = tensor_specs(bench.skeleton(stage.key))
    statistics = [name for name, spec in specs.items() if spec.buffer]
    in_encoder = 0 if encoder is None else 3 * (1 + 2 * 2 + 1)  # stem, two residual blocks, the wider shortcut
    assert len(statistics) == 3 * 3 * 2 + in_encoder, "three BatchNorms a head, two heads"
    sent = {client: update_tensors(bench, stage, client) for client in CLIENTS}
    mean = mean_of(sent, statistics)
    for name in statistics:
        assert torch.equal(result[name], mean[name]), name
        assert result[name].dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
    slots = {name for block in checkpoint.server.values() for name in block.tensors}
    parameters = {name for name, spec in specs.items() if not spec.buffer}
    assert slots == {f"{name}:{slot}" for name in parameters for slot in ("m", "v")}
    moved = mean_of(sent, sorted(parameters))
    assert any(not torch.equal(result[name], moved[name]) for name in parameters), "the optimiser does work on weights"


def test_fedadam_over_rounds_is_the_papers_algorithm(tmp_path: Path) -> None:
    """Reddi et al. 2021, Algorithm 2, on a weight of the model over three rounds; moments travel with checkpoints."""
    eta, beta_1, beta_2, tau = 0.03, 0.8, 0.95, 1e-2
    bench, stage, _ = begun(
        tmp_path, "stages.rounds=[3,1]", f"federation.server={{kind: fedadam, eta: {eta}, beta_1: {beta_1}, "
        f"beta_2: {beta_2}, tau: {tau}}}",
    )  # fmt: skip
    name = "image.blocks.0.attn.qkv.weight"
    start = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, 0))
    assert start is not None
    theta = tensors_of(bench.store, start)[name].double().numpy()
    m, v = np.zeros_like(theta), np.full_like(theta, tau**2)
    for server_round in (1, 2, 3):
        accept(bench, stage, CLIENTS[:2], server_round=server_round)
        sent = {c: update_tensors(bench, stage, c, server_round=server_round) for c in CLIENTS[:2]}
        result = tensors_of(bench.store, commit(bench, stage, server_round=server_round))
        delta = mean_of(sent, [name])[name].double().numpy() - theta
        m = beta_1 * m + (1 - beta_1) * delta
        v = beta_2 * v + (1 - beta_2) * delta**2
        theta = theta + eta * m / (np.sqrt(v) + tau)
        np.testing.assert_allclose(result[name].numpy(), theta, rtol=2e-6, atol=2e-7)
        theta = result[name].double().numpy()


def test_fedavg_with_a_rate_of_one_is_the_mean_bit_for_bit(tmp_path: Path) -> None:
    digests = []
    for folder, server in (("a", "{kind: fedavg}"), ("b", "{kind: fedavg, eta: 1.0}")):
        bench, stage, _ = begun(tmp_path / folder, f"federation.server={server}")
        accept(bench, stage, CLIENTS[:2])
        checkpoint = commit(bench, stage)
        assert not checkpoint.server
        mean = mean_of({c: update_tensors(bench, stage, c) for c in CLIENTS[:2]}, None)
        for name, tensor in tensors_of(bench.store, checkpoint).items():
            assert torch.equal(bits(tensor), bits(mean[name])), name
        digests.append(checkpoint.digest)
    assert digests[0] == digests[1]


def test_server_moments_are_committed_with_rounds_and_start_at_zero_in_each_stage(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, "federation.server.kind=fedyogi")
    first, second = done.checkpoint(1), done.checkpoint(2)
    assert set(first.server) == set(done.plans[0].trained) and set(second.server) == set(done.plans[1].trained)
    assert not done.checkpoint(2, 0).server, "stage 2 starts without moments"
    for block in second.server.values():
        assert all(torch.isfinite(t).all() for t in read_block(done.store, block_key(block), block).values())


def mean_of(sent: Mapping[str, Mapping[str, Tensor]], names: list[str] | None) -> dict[str, Tensor]:
    """The mean of clients that have as many examples each, by numpy."""
    first = next(iter(sent.values()))
    means = {}
    for name in names or sorted(first):
        parts = np.stack([sent[client][name].numpy() for client in sorted(sent)])
        if first[name].is_floating_point():
            parts = (parts.astype(np.float64).sum(0) / len(sent)).astype(np.float32)
        else:
            parts = parts.max(0)
        means[name] = torch.from_numpy(np.asarray(parts))
    return means


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits, so that 0 and -0 differ."""
    return tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor
