"""The ledger: the costs of a stage for one client, from the stage's plan alone.

Parameters, files and FLOPs are exact. Peak memory is a sum, both predicted and measured: the weights of all present
units, gradients and AdamW's two moments of the trained ones, and the activations that autograd saves for one
(micro-)batch. Gradients and activations are never all alive at once. Kernels' workspaces, loss and data are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from lwfed.catalog.costs import Architecture, Unit
from lwfed.catalog.fusion import fusion_kind
from lwfed.cost.bills import unit_bills, without_cached
from lwfed.cost.exchange import file_bytes, mean_download_bytes
from lwfed.cost.filling import Fill, fills, flops_from, kept_bytes
from lwfed.cost.heads import adapters, prediction_head, projection_head, temperature, with_received_heads
from lwfed.cost.memory import checkpointed, gradients_bytes, optimizer_bytes
from lwfed.cost.stage_cost import StageCost
from lwfed.plan.groups import Work, without_modalities
from lwfed.plan.levers import LeversPlan
from lwfed.plan.stages import StagePlan
from lwfed.plan.units import units_of
from lwfed.spec.federation import ExchangeSpec
from lwfed.spec.model import ModelSpec
from lwfed.types.errors import SpecError


def stage_costs(
    stages: Sequence[StagePlan],
    *,
    architectures: Mapping[str, Architecture],
    num_classes: int | None = None,
    tokens: Mapping[str, int] | None = None,
    kept_tokens: Mapping[str, int] | None = None,
) -> list[StageCost]:
    """Prices every stage of a plan.

    Args:
        stages: The stages, in order.
        architectures: Modality -> the whole encoder.
        num_classes: C, for a supervised objective.
        tokens: Modality -> number of tokens to count with; default: the architecture's (for texts, the maximum).
        kept_tokens: The same of a cached output, which is not padded; default: `tokens`.

    Returns:
        One cost per stage.

    Raises:
        SpecError: A supervised objective without `num_classes`.
    """
    return [
        price(
            stage,
            new=new,
            filled=filled,
            architectures=architectures,
            num_classes=num_classes,
            tokens=tokens,
            kept_tokens=kept_tokens,
        )
        for stage, new, filled in zip(stages, newly_frozen(stages), fills(stages), strict=True)
    ]


def newly_frozen(stages: Sequence[StagePlan]) -> list[set[str]]:
    """Returns the units of each stage that no earlier trained stage had frozen: clients fetch them once."""
    found = []
    downloaded: set[str] = set()  # frozen blocks on the client's disk
    for stage in stages:
        found.append(set(stage.frozen) - downloaded)
        if stage.rounds:
            downloaded |= set(stage.frozen)
    return found


def end_to_end_cost(
    stages: Sequence[StagePlan],
    *,
    architectures: Mapping[str, Architecture],
    num_classes: int | None = None,
    tokens: Mapping[str, int] | None = None,
) -> StageCost:
    """Prices end-to-end training of the same model, without levers or encoding: the reference of every factor.

    Its `stage` is 0.
    """
    last = stages[-1]
    whole = units_of(last.model, {m: architectures[m].depth for m in last.model.modalities})
    no_levers = LeversPlan(last_block={}, views={})
    changes = {
        "stage": 0, "present": whole, "trained": whole, "exchange": ExchangeSpec(), "levers": no_levers, "groups": ()
    }  # fmt: skip
    reference = last.model_copy(update=changes)
    return price(reference, new=set(), architectures=architectures, num_classes=num_classes, tokens=tokens)


def last_blocks(stage: StagePlan, *, cut: Mapping[str, int]) -> dict[str, str]:
    """Returns the units whose cost depends on how the last block is computed: unit -> `row` or `absorbed`.

    These are, in each modality, the last present block, if it is trained, and the units after it.

    Args:
        stage: The stage.
        cut: Modality -> number of leading blocks that run without gradients.
    """
    found: dict[str, str] = {}
    for modality, how in stage.levers.last_block.items():
        depth = stage.depth[modality]
        if how != "full" and cut.get(modality, 0) < depth:
            last = (f"blocks.{depth - 1}", "norm", "projection")
            found |= {f"{modality}.{suffix}": how for suffix in last}
    return found


def model_units(
    model: ModelSpec, *, architectures: Mapping[str, Architecture], num_classes: int | None = None
) -> dict[str, Unit]:
    """Returns every unit of the whole model by its canonical name.

    Raises:
        SpecError: A supervised objective without `num_classes`.
    """
    units: dict[str, Unit] = {}
    for modality in model.modalities:
        architecture = architectures[modality]
        units |= {f"{modality}.{suffix}": unit for suffix, unit in architecture.units.items()}
        own = adapters(model.encoders[modality], architecture=architecture)
        units |= {f"{modality}.{suffix}": unit for suffix, unit in own.items()}
        units[f"{modality}.projection"] = projection_head(model.projection, architecture=architecture)
    if model.objective.kind == "supervised":
        if num_classes is None:
            raise SpecError(
                "a supervised model cannot be priced without the number of classes",
                remedy="pass the number of classes of the data",
            )
        fusion, out = fusion_kind(model.objective.fusion), model.projection.out
        if fusion.unit is not None:
            units["fusion"] = fusion.unit(model.modalities, out)
        if model.blending is not None:
            alone = prediction_head(model.objective, fan_in=out, num_classes=num_classes)
            units |= {f"{modality}.prediction": alone for modality in model.modalities}
        units["prediction"] = prediction_head(
            model.objective, fan_in=fusion.width(len(model.modalities), out), num_classes=num_classes
        )
    elif model.objective.learnable_temperature:
        units["temperature"] = temperature()
    return units


def price(
    stage: StagePlan,
    *,
    new: set[str],
    architectures: Mapping[str, Architecture],
    filled: Mapping[str, Fill] = MappingProxyType({}),
    work: Work | None = None,
    num_classes: int | None = None,
    tokens: Mapping[str, int] | None = None,
    kept_tokens: Mapping[str, int] | None = None,
) -> StageCost:
    """Prices a stage for one client.

    Args:
        stage: The stage.
        new: The units that no earlier trained stage had frozen; see `newly_frozen`.
        architectures: Modality -> the whole encoder.
        filled: What the stage keeps of frozen blocks' outputs; see `fills`.
        work: What the client trains; None: all that the stage trains.
        num_classes: C, for a supervised objective.
        tokens: Modality -> number of tokens to count with.
        kept_tokens: The same of a cached output, which is not padded; default: `tokens`.
    """
    training = stage.training
    work = work or Work(group="", trained=stage.trained, cut=stage.cut, lacks=())
    kept = {modality for modality in stage.levers.views if modality not in work.lacks}
    filled = {modality: fill for modality, fill in filled.items() if modality in kept}
    fixed = set(stage.frozen)
    micro = -(-training.batch_size // (training.gradient_accumulation * stage.devices))
    units = model_units(stage.model, architectures=architectures, num_classes=num_classes)
    counts = {m: (tokens or {}).get(m, architecture.tokens) for m, architecture in sorted(architectures.items())}
    alone = counts | {m: count for m, count in (kept_tokens or {}).items() if m in counts}
    present = without_modalities(stage.present, left_out=work.lacks)
    bills = unit_bills(
        present,
        trained=set(work.trained),
        units=units,
        tokens=counts,
        item_bytes=2 if training.precision == "bf16" else 4,
        variants=last_blocks(stage, cut=work.cut),
    )
    fill_from = flops_from([name for name in present if name in fixed], kept=kept, units=units, tokens=alone)
    bills = without_cached(bills, kept=kept, frozen=fixed)
    outputs = {m: kept_bytes(stage, m, architecture=architectures[m], tokens=alone[m]) for m in sorted(kept)}
    if training.activation_checkpointing:
        bills = checkpointed(bills)
    if stage.model.objective.alignment is not None:
        bills = with_received_heads(bills, width=stage.model.projection.out)
    exchanged = [bill for bill in bills if bill.trained]
    frozen = [bill for bill in bills if bill.unit in fixed]
    up = file_bytes((units[bill.unit].named(bill.unit) for bill in exchanged), stage.exchange.upload)
    fetched = [units[bill.unit].named(bill.unit) for bill in bills if bill.unit not in fixed]  # others may train more
    change, snapshot = (file_bytes(fetched, codec) for codec in (stage.exchange.download, "fp32"))
    trained_params = sum(bill.params for bill in exchanged)
    tensors = [spec for bill in exchanged for spec in units[bill.unit].tensors.values()]
    gradients = gradients_bytes(tensors, training=training)
    moments = optimizer_bytes(tensors, training=training)
    anchor = 4 * trained_params if training.proximal_mu else 0  # the starting weights, for FedProx
    weights = sum(bill.nbytes for bill in bills)
    sample = sum(bill.saved_bytes for bill in bills)
    activations = micro * sample + sum(bill.fixed_bytes for bill in bills)
    return StageCost(
        stage=stage.stage,
        present_params=sum(bill.params for bill in bills),
        trained_params=trained_params,
        exchanged_params=trained_params,
        exchanged_bytes=up,
        upload_bytes=up,
        download_bytes=mean_download_bytes(stage, snapshot=snapshot, change=change),
        snapshot_bytes=snapshot,
        change_bytes=change,
        frozen_bytes=sum(bill.file_bytes for bill in frozen),
        newly_frozen_bytes=sum(bill.file_bytes for bill in frozen if bill.unit in new),
        forward_flops=sum(bill.forward_flops for bill in bills),
        backward_flops=sum(bill.backward_flops for bill in bills),
        tokens=counts,
        kept_tokens={m: alone[m] for m in sorted(kept)},
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=moments,
        activations_bytes=activations,
        peak_bytes=weights + gradients + moments + activations + anchor,
        batch_size=training.batch_size,
        micro_batch_size=micro,
        sample_bytes=sample,
        fill_flops=round(
            sum(count * fill_from[m][str(done)] for m, fill in filled.items() for done, count in fill.computed.items())
        ),
        fill_from=fill_from,
        cache_bytes=round(sum(fill.kept * outputs[m] for m, fill in filled.items())),
        read_bytes=sum(outputs.values()),
        units=bills,
    )
