"""Laws that need a GPU: they skip where there is none.

Kernels are deterministic and a client has one device, so a GPU of one model gives one digest, run after run and
launcher after launcher. Kept outputs and the ledger hold there as they do on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lwfed.federated.optimizer import make_optimizer
from lwfed.launch.subprocess import Subprocess
from lwfed.plan.stages import Rates
from lwfed.round.workbench import Workbench
from lwfed.store.local import LocalStore
from tests.tiny import Finished, run_tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = "launch.device=cuda"
FP32 = "training.precision=fp32"


def _processes(bench: Workbench) -> Subprocess:
    return Subprocess(bench.store, parallel=2, devices=1, retries=0)


def _client(done: Finished, stage: int, name: str) -> list[Any]:
    return [c[name] for r in done.reported("round") if r["stage"] == stage for c in r["clients"].values() if name in c]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_a_spec_has_one_digest_in_every_launcher(tmp_path: Path, precision: str) -> None:
    overrides = (GPU, f"training.precision={precision}", "federation.num_clients=3", "data.shapes.train=36")
    first = run_tiny(tmp_path / "a", *overrides)
    again = run_tiny(tmp_path / "b", *overrides)
    apart = run_tiny(tmp_path / "c", *overrides, launcher=_processes)
    assert first.digest == again.digest == apart.digest
    assert first.digest != run_tiny(tmp_path / "d", "seed=1", *overrides).digest


def test_a_gpu_trains_as_a_cpu_does(tmp_path: Path) -> None:
    """In fp32 and without dropout, whose masks differ: the first round's losses agree to rounding."""
    same = (FP32, "model.projection.dropout=0", "training.learning_rate=1e-4", "stages.rounds=[1,0]")
    same += ("model.encoders.text.config.dropout=0.0", "model.encoders.text.config.attention_dropout=0.0")
    losses = [
        run_tiny(tmp_path / name, *same, *more).reported("round")[0]["metrics"]["train/loss"]
        for name, more in (("gpu", (GPU,)), ("cpu", ()))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_kept_outputs_are_those_computed_anew(tmp_path: Path) -> None:
    losses = []
    for cache in ("always", "never"):
        done = run_tiny(tmp_path / cache, GPU, FP32, f"levers.prefix_cache={cache}", "stages.rounds=[1,1]")
        losses.append(_client(done, 2, "loss"))
        told = _client(done, 2, "prefix")
        assert bool(told) == (cache == "always")
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("lever", ["training.step_in_backward=true", "training.activation_checkpointing=true"])
def test_levers_that_change_no_bit_change_none_on_a_gpu(tmp_path: Path, lever: str) -> None:
    assert run_tiny(tmp_path / "a", GPU, FP32).digest == run_tiny(tmp_path / "b", GPU, FP32, lever).digest


@pytest.mark.parametrize("moments", ["bf16", "int8"])
def test_rounded_moments_step_alike_on_both(moments: str) -> None:
    """Rounding draws its bits from a counter, so a GPU rounds as a CPU does."""
    weights = []
    for device in ("cpu", "cuda"):
        generator = torch.Generator().manual_seed(0)
        value = torch.nn.Parameter(torch.randn(1000, 130, generator=generator).to(device))
        optimizer = make_optimizer([([value], Rates(learning_rate=1e-2, weight_decay=0.1))], moments=moments, seed="5e")
        for _ in range(3):
            value.grad = torch.randn(1000, 130, generator=generator).to(device)
            optimizer.step()
        weights.append(value.detach().cpu())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-4)


def test_the_ledger_holds(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, GPU, FP32, "data.shapes.train=64", "training.batch_size=32", "stages.rounds=[1,1]")
    for stage in done.summary["stages"]:
        predicted, measured = stage["ledger"]["predicted"], stage["ledger"]["measured"]
        for way in ("forward_flops", "backward_flops"):
            assert measured[way] == pytest.approx(predicted[way], rel=0.1), "captions of few scenes"
        assert measured["peak_tensor_bytes"] == pytest.approx(predicted["peak_bytes"], rel=0.15)
        assert measured["device_peak_bytes"] > 0


def test_a_held_model_stays_on_the_device(tmp_path: Path) -> None:
    """Between clients what is trained is neither read from the store nor copied from the host."""
    bench = Workbench(LocalStore(tmp_path))
    held: list[set[str]] = []

    def look(kind: str, values: dict[str, Any]) -> None:
        if kind == "round":
            held.append({tensor.device.type for block in bench._model.values() for tensor in block.values()})

    run_tiny(tmp_path, GPU, "stages.rounds=[2,1]", store=bench.store, emit=look)
    assert held == [{"cuda"}] * 3
    assert not bench._model, "let go of at the end"
