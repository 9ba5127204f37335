"""Laws: the ledger's parameters, files, FLOPs and activations are those of the real model at every stage."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from lwfed.catalog.costs import Architecture
from lwfed.cost.architectures import by_formulas
from lwfed.cost.ledger import end_to_end_cost, last_blocks, stage_costs
from lwfed.cost.stage_cost import StageCost
from lwfed.models.build import initial_tensors, load, set_trained, skeleton, tensor_specs
from lwfed.models.inspect import SavedBytes
from lwfed.models.multimodal import Multimodal
from lwfed.plan.stages import StagePlan, plan_stages
from lwfed.spec.run import RunSpec
from lwfed.types.errors import SpecError
from lwfed.types.tensors import layout, unit_of

NUM_CLASSES = 5
STRATEGIES = ["layerwise", "progressive", "end_to_end"]
IMAGE = {
    "family": "vit",
    "arch": "vit_tiny_patch16_224",
    "blocks_per_stage": 2,
    "config": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 6, "num_heads": 3},
}
TEXT = {
    "family": "distilbert",
    "max_tokens": 12,
    "config": {
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 96,
        "vocab_size": 50,
        "max_position_embeddings": 16,
    },
}
AUDIO = {
    "family": "ast",
    "config": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "num_mel_bins": 32,
        "max_length": 64,
    },
}


HOWS = ["full", "row", "absorbed"]


def spec_of(strategy: str, *, supervised: bool, last_block: str = "full", **training: Any) -> RunSpec:
    objective = {"kind": "supervised", "hidden": 24} if supervised else {"kind": "contrastive"}
    return RunSpec.model_validate(
        {
            "strategy": strategy,
            "stages": {"rounds": [1, 2, 3]},
            "model": {
                "encoders": {"image": IMAGE} | ({"audio": AUDIO} if supervised else {"text": TEXT}),
                "projection": {"hidden": 64, "out": 16},
                "objective": objective,
            },
            "training": {"batch_size": 8} | training,
            "levers": {"prefix_cache": "never", "last_block": last_block},
        }
    )


def plan_and_price(spec: RunSpec) -> tuple[tuple[StagePlan, ...], dict[str, Architecture], list[StageCost]]:
    architectures = {m: architecture for m, e in spec.model.encoders.items() if (architecture := by_formulas(e))}
    stages = plan_stages(spec, depths={m: architecture.depth for m, architecture in architectures.items()})
    return stages, architectures, stage_costs(stages, architectures=architectures, num_classes=NUM_CLASSES)


def real_model(stage: StagePlan) -> Multimodal:
    tensors = initial_tensors(
        stage.model, units=stage.present, depth=stage.depth, num_classes=NUM_CLASSES, seed=stage.seed
    )
    module = load(skeleton(stage.model, depth=stage.depth, num_classes=NUM_CLASSES), tensors)
    set_trained(module, trained=stage.trained)
    return module


def batch_of(stage: StagePlan, batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Any] = {
        "image": torch.randn(batch, 3, 32, 32, generator=generator),
        "audio": torch.randn(batch, 64, 32, generator=generator),
        "text": {
            "ids": torch.randint(1, 50, (batch, 12), generator=generator),
            "mask": torch.arange(12)[None] < torch.randint(2, 13, (batch, 1), generator=generator),
        },
    }
    return {m: made[m] for m in stage.model.modalities}


def measure(stage: StagePlan, *, batch: int, bf16: bool = False) -> dict[str, int]:
    """One step of the real model: FLOPs a sample, bytes that autograd keeps."""
    module, inputs = real_model(stage), batch_of(stage, batch)
    raw = [t for value in inputs.values() for t in (value.values() if isinstance(value, dict) else [value])]
    saved = SavedBytes([*module.parameters(), *module.buffers(), *raw])
    with torch.random.fork_rng(), FlopCounterMode(display=False) as flops:
        with saved.watch(), torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            projections = module(inputs, cut=stage.cut, last_block=stage.levers.last_block)
            outputs = [module.classify(projections)] if module.prediction else list(projections.values())
            loss = sum(output.float().sum() for output in outputs)
        forward = flops.get_total_flops()
        loss.backward()
        backward = flops.get_total_flops() - forward
    assert all((p.grad is not None) == p.requires_grad for p in module.parameters())
    return {"forward": forward, "backward": backward, "saved": saved.total}


@pytest.mark.parametrize("last_block", HOWS)
@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_flops_and_activations_are_those_counted_on_the_real_model(
    strategy: str, supervised: bool, last_block: str
) -> None:
    stages, _, costs = plan_and_price(spec_of(strategy, supervised=supervised, last_block=last_block))
    for stage, cost in zip(stages, costs, strict=True):
        counted = measure(stage, batch=8)
        assert cost.forward_flops * 8 == counted["forward"]
        assert cost.backward_flops * 8 == counted["backward"]
        assert cost.activations_bytes == pytest.approx(counted["saved"], rel=0.01)


@pytest.mark.parametrize("last_block", HOWS)
@pytest.mark.parametrize("supervised", [False, True])
def test_activations_are_predicted_with_bf16_too(supervised: bool, last_block: str) -> None:
    stages, _, costs = plan_and_price(
        spec_of("layerwise", supervised=supervised, last_block=last_block, precision="bf16")
    )
    for stage, cost in zip(stages, costs, strict=True):
        assert cost.activations_bytes == pytest.approx(measure(stage, batch=8, bf16=True)["saved"], rel=0.1)


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_parameters_and_files_are_those_of_the_real_model(strategy: str, supervised: bool, tmp_path: Any) -> None:
    stages, _, costs = plan_and_price(spec_of(strategy, supervised=supervised))
    for stage, cost in zip(stages, costs, strict=True):
        specs = tensor_specs(skeleton(stage.model, depth=stage.depth, num_classes=NUM_CLASSES))
        assert cost.present_params == sum(s.numel for s in specs.values() if not s.buffer)
        assert cost.weights_bytes == sum(s.nbytes for s in specs.values())
        sizes = {"trained": 0, "frozen": 0}
        for unit in stage.present:
            tensors = {name: s for name, s in specs.items() if unit_of(name) == unit}
            place = layout(tensors)
            file = tmp_path / "unit.safetensors"
            file.write_bytes(place.header + bytes(place.nbytes - len(place.header)))
            with safe_open(file, framework="pt") as opened:
                assert {name: tuple(opened.get_tensor(name).shape) for name in opened.keys()} == {  # noqa: SIM118
                    name: s.shape for name, s in tensors.items()
                }
            sizes["trained" if unit in stage.trained else "frozen"] += file.stat().st_size
        assert (cost.exchanged_bytes, cost.frozen_bytes) == (sizes["trained"], sizes["frozen"])
        trained = sum(s.numel for n, s in specs.items() if not s.buffer and unit_of(n) in stage.trained)
        assert cost.trained_params == cost.exchanged_params == trained
        assert (cost.gradients_bytes, cost.optimizer_bytes) == (4 * trained, 8 * trained)
        whole = cost.weights_bytes + cost.gradients_bytes + cost.optimizer_bytes + cost.activations_bytes
        assert cost.peak_bytes == whole


def test_frozen_units_are_downloaded_once() -> None:
    _, _, costs = plan_and_price(spec_of("layerwise", supervised=False))
    assert costs[0].frozen_bytes == 0
    assert [c.newly_frozen_bytes for c in costs] == [
        0,
        costs[1].frozen_bytes,
        costs[2].frozen_bytes - costs[1].frozen_bytes,
    ]


def test_a_stage_without_rounds_downloads_nothing_so_the_next_one_does() -> None:
    spec = spec_of("layerwise", supervised=False)
    spec = spec.model_copy(update={"stages": spec.stages.model_copy(update={"rounds": (0, 0, 3)})})
    _, _, costs = plan_and_price(spec)
    assert costs[2].newly_frozen_bytes == costs[2].frozen_bytes


def test_end_to_end_is_progressive_s_last_stage() -> None:
    stages, architectures, costs = plan_and_price(spec_of("progressive", supervised=True))
    whole = end_to_end_cost(stages, architectures=architectures, num_classes=NUM_CLASSES)
    assert whole.to_values() | {"stage": 3} == costs[-1].to_values()
    early = end_to_end_cost(stages[:1], architectures=architectures, num_classes=NUM_CLASSES)
    assert early == whole


def test_a_frozen_last_block_is_billed_whole() -> None:
    """Where a stage adds no block to an encoder, all of it is frozen and its feature is that of all tokens."""
    spec = spec_of("layerwise", supervised=False, last_block="absorbed")
    encoders = {m: e.model_dump() for m, e in spec.model.encoders.items()}
    encoders["text"]["blocks_per_stage"] = (2, 1, 0)
    spec = RunSpec.model_validate(spec.model_dump() | {"model": spec.model.model_dump() | {"encoders": encoders}})
    stages, _, costs = plan_and_price(spec)
    assert stages[-1].cut["text"] == stages[-1].depth["text"] == 3
    assert {unit.partition(".")[0] for unit in last_blocks(stages[-1], cut=stages[-1].cut)} == {"image"}
    for stage, cost in zip(stages, costs, strict=True):
        counted = measure(stage, batch=8)
        assert (cost.forward_flops * 8, cost.backward_flops * 8) == (counted["forward"], counted["backward"])
        assert cost.activations_bytes == pytest.approx(counted["saved"], rel=0.01)


def test_the_reference_has_no_levers() -> None:
    spec = spec_of("end_to_end", supervised=False, last_block="absorbed")
    stages, architectures, costs = plan_and_price(spec)
    whole = end_to_end_cost(stages, architectures=architectures)
    assert whole.flops > costs[0].flops and whole.activations_bytes > costs[0].activations_bytes
    assert (whole.exchanged_bytes, whole.weights_bytes) == (costs[0].exchanged_bytes, costs[0].weights_bytes)


def test_fewer_tokens_cost_less() -> None:
    stages, architectures, costs = plan_and_price(spec_of("layerwise", supervised=False))
    short = stage_costs(stages, architectures=architectures, tokens={"text": 5})
    assert short[0].tokens == {"image": 17, "text": 5}
    assert short[0].forward_flops < costs[0].forward_flops
    assert short[0].activations_bytes < costs[0].activations_bytes
    assert short[0].exchanged_bytes == costs[0].exchanged_bytes


def test_a_kept_text_is_counted_without_its_batch_s_padding() -> None:
    """Disk, reading and filling depend on its own length; steps, which pad it, do not."""
    spec = spec_of("layerwise", supervised=False)
    spec = spec.model_copy(update={"levers": spec.levers.model_copy(update={"prefix_cache": "always"})})
    stages, architectures, _ = plan_and_price(spec)
    padded, alone = (
        stage_costs(stages, architectures=architectures, tokens={"text": 8}, kept_tokens=kept)[-1]
        for kept in (None, {"text": 5})
    )
    assert (padded.kept_tokens["text"], alone.kept_tokens["text"]) == (8, 5) and padded.tokens == alone.tokens
    assert alone.cache_bytes < padded.cache_bytes and alone.read_bytes < padded.read_bytes
    assert alone.fill_flops < padded.fill_flops
    assert (alone.flops, alone.peak_bytes) == (padded.flops, padded.peak_bytes)


def test_accumulation_and_devices_divide_the_activations_only() -> None:
    _, _, (one, *_) = plan_and_price(spec_of("layerwise", supervised=False))
    _, _, (two, *_) = plan_and_price(spec_of("layerwise", supervised=False, gradient_accumulation=2))
    assert (one.micro_batch_size, two.micro_batch_size, two.batch_size) == (8, 4, 8)
    assert one.activations_bytes - two.activations_bytes == 4 * one.sample_bytes
    assert one.exchanged_bytes == two.exchanged_bytes


def test_the_parts_add_up() -> None:
    for cost in plan_and_price(spec_of("layerwise", supervised=True))[2]:
        parts = cost.by_part()
        assert list(parts) == ["stem", "blocks", "norm", "projection", "prediction"]
        for key, total in (
            ("params", cost.present_params),
            ("exchanged_params", cost.exchanged_params),
            ("forward_flops", cost.forward_flops),
            ("backward_flops", cost.backward_flops),
            ("saved_bytes", cost.sample_bytes),
        ):
            assert sum(part[key] for part in parts.values()) == total


def test_a_supervised_model_needs_its_number_of_classes() -> None:
    stages, architectures, _ = plan_and_price(spec_of("layerwise", supervised=True))
    with pytest.raises(SpecError, match="number of classes"):
        stage_costs(stages, architectures=architectures)
