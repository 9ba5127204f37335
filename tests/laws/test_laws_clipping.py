"""Laws of clipping, on tensors and on whole runs: no client moves the model further than the bound."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lwfed.catalog.aggregators.clipped import Settings
from lwfed.federated.codecs import decode, encode, generator_of
from lwfed.params import norm, sub
from lwfed.types.encoded import Codec
from tests.aggregating import aggregate
from tests.laws.test_laws_resume import RUN, stop_at
from tests.tiny import Stopped, run_tiny, tensors_of

CLIENTS = ("client-000", "client-001", "client-002")
BUFFERS = ("running_mean",)


def values(seed: int, *, size: float = 1.0) -> dict[str, Tensor]:
    """Two parameters, a floating buffer and a counter."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": size * torch.randn(4, 3, generator=generator),
        "b": size * torch.randn(5, generator=generator),
        "running_mean": size * torch.randn(3, generator=generator),
        "count": torch.tensor(seed),
    }


def moved(start: dict[str, Tensor], *, by: float, seed: int) -> dict[str, Tensor]:
    """What a client sends whose parameters moved by a norm of `by`."""
    change = {name: tensor for name, tensor in values(seed).items() if name in ("a", "b")}
    scale = by / norm(change)
    return values(seed) | {name: start[name] + scale * change[name] for name in change}


def parameters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name].double() for name in ("a", "b")}


def test_no_client_moves_the_model_further_than_the_bound() -> None:
    start = values(1)
    for by in (0.5, 2.0, 1000.0):
        sent = {"client-000": moved(start, by=by, seed=2)}
        after = aggregate(sent, start=start, wrappers=[Settings(max_norm=2.0)], buffers=BUFFERS)
        change = sub(parameters(after), parameters(start))
        assert norm(change) == pytest.approx(min(by, 2.0), rel=1e-5)
        meant = sub(parameters(sent["client-000"]), parameters(start))
        cosine = sum(float((change[n] * meant[n]).sum()) for n in change) / (norm(change) * norm(meant))
        assert cosine == pytest.approx(1.0, abs=1e-6), "it is shorter, and points the same way"


def test_buffers_and_integers_pass_unchanged() -> None:
    start = values(1)
    sent = {client: moved(start, by=50.0, seed=n) for n, client in enumerate(CLIENTS, start=2)}
    plain = aggregate(sent, start=start, buffers=BUFFERS)
    clipped = aggregate(sent, start=start, wrappers=[Settings(max_norm=0.1)], buffers=BUFFERS)
    for name in ("running_mean", "count"):
        assert torch.equal(plain[name], clipped[name])
    assert not torch.equal(plain["a"], clipped["a"])


def test_a_bound_that_nobody_meets_changes_no_bit() -> None:
    start = values(1)
    sent = {client: moved(start, by=3.0, seed=n) for n, client in enumerate(CLIENTS, start=2)}
    plain = aggregate(sent, start=start, buffers=BUFFERS)
    clipped = aggregate(sent, start=start, wrappers=[Settings(max_norm=3.1)], buffers=BUFFERS)
    assert all(torch.equal(plain[name], clipped[name]) for name in plain)


def test_only_those_beyond_the_bound_are_clipped_and_wrappers_compose() -> None:
    start = values(1)
    near, far = moved(start, by=1.0, seed=2), moved(start, by=9.0, seed=3)
    sent = {"client-000": near, "client-001": far}
    bound = [Settings(max_norm=3.0)]
    clipped = aggregate(sent, start=start, wrappers=bound, buffers=BUFFERS)
    expected = {n: (near[n].double() + start[n] + (far[n].double() - start[n]) / 3) / 2 for n in ("a", "b")}
    for name, tensor in expected.items():
        torch.testing.assert_close(clipped[name], tensor.float(), rtol=1e-5, atol=1e-6)
    twice = aggregate(sent, start=start, wrappers=[Settings(max_norm=5.0), *bound], buffers=BUFFERS)
    for name in expected:
        torch.testing.assert_close(twice[name], clipped[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_encoded_changes_are_clipped_as_values_are(codec: Codec) -> None:
    start = values(1)
    far = moved(start, by=9.0, seed=3)
    sent = {k: far[k] for k in ("running_mean", "count")}
    for name in ("a", "b"):
        sent |= encode(name, far[name] - start[name], codec=codec, generator=generator_of("00"))
    decoded = {n: decode(n, sent) if n in ("a", "b") else sent[n] for n in far}
    after = aggregate(
        {"client-000": decoded}, start=start, codec=codec, wrappers=[Settings(max_norm=2.0)], buffers=BUFFERS
    )
    assert norm(sub(parameters(after), parameters(start))) == pytest.approx(2.0, rel=1e-5)


def test_a_run_stays_within_the_bound_and_reports_it(tmp_path: Path) -> None:
    bound = 0.05
    override = f"federation.aggregators=[{{kind: clipped, max_norm: {bound}}}]"
    clipped = run_tiny(tmp_path / "clipped", override, "stages.rounds=[2,1]", "store.keep_rounds=0")
    plain = run_tiny(tmp_path / "plain", "stages.rounds=[2,1]")
    loose = run_tiny(
        tmp_path / "loose", "federation.aggregators=[{kind: clipped, max_norm: 1000}]", "stages.rounds=[2,1]"
    )
    assert clipped.digest != plain.digest == loose.digest
    assert clipped.keys[0] != plain.keys[0], "the bound is part of the plan"
    first = clipped.reported("round")[0]["metrics"]
    assert first["aggregate/clipped"] == 1.0 and first["aggregate/largest_norm"] > bound
    assert "aggregate/clipped" not in plain.reported("round")[0]["metrics"]
    before, after = (tensors_of(clipped.store, clipped.checkpoint(1, number)) for number in (0, 1))
    names = [n for n in before if before[n].is_floating_point() and "running_" not in n]
    change = math.sqrt(sum(float((after[n].double() - before[n].double()).square().sum()) for n in names))
    assert 0 < change <= bound * (1 + 1e-5)


def test_a_clipped_run_with_encoded_updates_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Of the round in which the run is stopped, one update lies in the store and is read from there."""
    options = ("federation.aggregators=[{kind: clipped, max_norm: 0.05}]", "exchange.upload=int8")
    with pytest.raises(Stopped):
        run_tiny(tmp_path / "stopped", *options, options=RUN, emit=stop_at("client_done", 3))
    resumed = run_tiny(tmp_path / "stopped", *options, options=RUN)
    assert resumed.digest == run_tiny(tmp_path / "whole", *options).digest
