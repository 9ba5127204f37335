"""The ledger: what a stage costs one client, from its plan alone.

Parameters, files and FLOPs are exact. Peak memory is a sum, taken alike where it is measured: the weights of all that
is present, gradients and AdamW's two moments of what is trained, and the activations that autograd keeps for one
(micro-)batch. Gradients and activations are never all alive at once. Kernels' workspaces, loss and data are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lwfed.cost.exchange import file_bytes, mean_download_bytes
from lwfed.cost.heads import prediction_head, projection_head
from lwfed.cost.memory import checkpointed, gradients_bytes, optimizer_bytes
from lwfed.cost.units import Architecture, Unit
from lwfed.plan.stages import StagePlan
from lwfed.plan.units import units_of
from lwfed.spec.federation import ExchangeSpec
from lwfed.spec.model import ModelSpec
from lwfed.types.errors import SpecError
from lwfed.types.tensors import layout

PARTS = ("stem", "blocks", "norm", "projection", "prediction")
"""Parts of a model, in the order data passes them."""


@dataclass(frozen=True, slots=True)
class UnitBill:
    """What one unit costs in a stage.

    Attributes:
        unit: Its name, such as `image.blocks.3`.
        part: `stem`, `blocks`, `norm`, `projection` or `prediction`.
        trained: Whether it is trained, and so exchanged.
        params: Number of parameters.
        nbytes: Bytes of its tensors in memory.
        file_bytes: Bytes of its safetensors file.
        forward_flops: A sample.
        backward_flops: A sample; 0 where it is frozen.
        saved_bytes: Activations kept for the backward pass, a sample; 0 where it is frozen.
        fixed_bytes: The same, once and not a sample.
        fill_flops: An example, once a stage: where its outputs are kept and were not before.
        input_bytes: Of a block's input, a sample; 0 where it is frozen.
        recomputed_flops: Of computing a block again, a sample; 0 where it is frozen.
    """

    unit: str
    part: str
    trained: bool
    params: int
    nbytes: int
    file_bytes: int
    forward_flops: int
    backward_flops: int
    saved_bytes: int
    fixed_bytes: int
    fill_flops: int = 0
    input_bytes: int = 0
    recomputed_flops: int = 0


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage costs one client; parameters and bytes are counts, FLOPs are a sample.

    Attributes:
        stage: s; 0 for the end-to-end reference.
        present_params: Parameters of the model.
        trained_params: Parameters that are trained.
        exchanged_params: Parameters sent each way, each round: those trained.
        exchanged_bytes: Bytes sent up each round: a safetensors file a trained unit, buffers and headers too.
        upload_bytes: The same.
        download_bytes: Bytes of trained units fetched, a client and round, the mean over the stage's cohorts.
        snapshot_bytes: Those fetched in a stage's first round, and after a round missed.
        change_bytes: Those fetched in any other round; `snapshot_bytes` where downloads are not encoded.
        frozen_bytes: Bytes of the files of the frozen units.
        newly_frozen_bytes: Those that no earlier trained stage had frozen: a client downloads them once.
        forward_flops: A sample.
        backward_flops: A sample.
        tokens: Modality -> tokens counted with.
        weights_bytes: Weights of all that is present; frozen blocks whose outputs are kept are not loaded.
        gradients_bytes: Gradients of what is trained, as far as they are alive at once.
        optimizer_bytes: AdamW's moments of what is trained.
        activations_bytes: What autograd keeps for a micro-batch.
        peak_bytes: Sum of the four, and with FedProx another copy of what is trained.
        batch_size: Examples a step.
        micro_batch_size: Examples a forward pass on one device.
        sample_bytes: Part of `activations_bytes` that each example adds.
        fill_flops: An example, once: frozen blocks whose outputs are kept.
        cache_bytes: An example: those outputs on the client's disk, texts as long as they may be.
        units: The bill of each unit, in the order data passes them.
    """

    stage: int
    present_params: int
    trained_params: int
    exchanged_params: int
    exchanged_bytes: int
    upload_bytes: int
    download_bytes: float
    snapshot_bytes: int
    change_bytes: int
    frozen_bytes: int
    newly_frozen_bytes: int
    forward_flops: int
    backward_flops: int
    tokens: dict[str, int]
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    peak_bytes: int
    batch_size: int
    micro_batch_size: int
    sample_bytes: int
    fill_flops: int
    cache_bytes: int
    units: tuple[UnitBill, ...]

    @property
    def flops(self) -> int:
        """FLOPs of a training sample, both passes."""
        return self.forward_flops + self.backward_flops

    def by_part(self) -> dict[str, dict[str, int]]:
        """Explains the totals: part -> params, exchanged_params, forward_flops, backward_flops, saved_bytes."""
        return {
            part: {
                "params": sum(bill.params for bill in bills),
                "exchanged_params": sum(bill.params for bill in bills if bill.trained),
                "forward_flops": sum(bill.forward_flops for bill in bills),
                "backward_flops": sum(bill.backward_flops for bill in bills),
                "saved_bytes": sum(bill.saved_bytes for bill in bills),
            }
            for part in PARTS
            if (bills := [bill for bill in self.units if bill.part == part])
        }

    def to_values(self) -> dict[str, Any]:
        """Gives a JSON value: every count, and `parts` in place of the units."""
        values = asdict(self)
        del values["units"]
        return values | {"parts": self.by_part()}


def stage_costs(
    stages: Sequence[StagePlan],
    *,
    architectures: Mapping[str, Architecture],
    num_classes: int | None = None,
    tokens: Mapping[str, int] | None = None,
) -> list[StageCost]:
    """Prices every stage of a plan.

    Args:
        stages: The stages, in order.
        architectures: Modality -> encoder, whole.
        num_classes: C, for a supervised objective.
        tokens: Modality -> tokens to count with; default: those of the architecture (the most that a text may have).

    Returns:
        A cost for each stage.

    Raises:
        SpecError: A supervised objective without `num_classes`.
    """
    costs = []
    downloaded: set[str] = set()  # frozen blocks on the client's disk
    applied: set[str] = set()  # frozen blocks that what is kept has passed
    for stage in stages:
        keeps = {unit for unit in stage.frozen if unit.partition(".")[0] in stage.levers.views}
        new = {unit for unit in stage.frozen if unit not in (applied if unit in keeps else downloaded)}
        costs.append(
            _price(
                stage,
                number=stage.stage,
                present=stage.present,
                trained=stage.trained,
                new=new,
                units=model_units(stage.model, architectures=architectures, num_classes=num_classes),
                tokens=_tokens(architectures, tokens),
                widths={m: architecture.width for m, architecture in architectures.items()},
                variants=last_blocks(stage),
            )
        )
        if stage.rounds:
            applied |= keeps
            downloaded = (downloaded | new) if stage.evaluation.federated_every else (downloaded | new) - keeps
    return costs


def end_to_end_cost(
    stages: Sequence[StagePlan],
    *,
    architectures: Mapping[str, Architecture],
    num_classes: int | None = None,
    tokens: Mapping[str, int] | None = None,
) -> StageCost:
    """Prices the same model trained whole, without levers, and sent as it is: what every factor is taken against.

    Its `stage` is 0.
    """
    last = stages[-1].model_copy(update={"exchange": ExchangeSpec()})
    whole = units_of(last.model, {m: architectures[m].depth for m in last.model.modalities})
    return _price(
        last,
        number=0,
        present=whole,
        trained=whole,
        new=set(),
        units=model_units(last.model, architectures=architectures, num_classes=num_classes),
        tokens=_tokens(architectures, tokens),
        widths={},
        variants={},
    )


def last_blocks(stage: StagePlan) -> dict[str, str]:
    """Gives the units whose cost depends on how the last block is computed: unit -> `row` or `absorbed`.

    In each modality the last block present, if it is not frozen, and what follows it.
    """
    found: dict[str, str] = {}
    for modality, how in stage.levers.last_block.items():
        depth = stage.depth[modality]
        if how != "full" and stage.cut.get(modality, 0) < depth:
            last = (f"blocks.{depth - 1}", "norm", "projection")
            found |= {f"{modality}.{suffix}": how for suffix in last}
    return found


def model_units(
    model: ModelSpec, *, architectures: Mapping[str, Architecture], num_classes: int | None = None
) -> dict[str, Unit]:
    """Gives every unit of the whole model by its canonical name.

    Raises:
        SpecError: A supervised objective without `num_classes`.
    """
    units: dict[str, Unit] = {}
    for modality in model.modalities:
        architecture = architectures[modality]
        units |= {f"{modality}.{suffix}": unit for suffix, unit in architecture.units.items()}
        units[f"{modality}.projection"] = projection_head(model.projection, architecture=architecture)
    if model.objective.kind == "supervised":
        if num_classes is None:
            raise SpecError(
                "a supervised model cannot be priced before its number of classes is known",
                remedy="give the number of classes of the data",
            )
        units["prediction"] = prediction_head(
            model.objective,
            num_modalities=len(model.modalities),
            width=model.projection.out,
            num_classes=num_classes,
        )
    return units


def _tokens(architectures: Mapping[str, Architecture], tokens: Mapping[str, int] | None) -> dict[str, int]:
    return {m: (tokens or {}).get(m, architecture.tokens) for m, architecture in sorted(architectures.items())}


def _price(
    stage: StagePlan,
    *,
    number: int,
    present: Iterable[str],
    trained: Iterable[str],
    new: set[str],
    units: Mapping[str, Unit],
    tokens: Mapping[str, int],
    widths: Mapping[str, int],
    variants: Mapping[str, str],
) -> StageCost:
    training = stage.training
    micro = -(-training.batch_size // (training.gradient_accumulation * stage.devices))
    kept = stage.levers.views if widths else {}
    bills = _bills(
        present,
        trained=set(trained),
        units=units,
        tokens=tokens,
        item_bytes=2 if training.precision == "bf16" else 4,
        variants=variants,
    )
    bills = tuple(_kept(bill, views=kept, new=new) for bill in bills)
    if training.activation_checkpointing:
        bills = checkpointed(bills)
    exchanged = [bill for bill in bills if bill.trained]
    frozen = [bill for bill in bills if not bill.trained]
    specs = [units[bill.unit].named(bill.unit) for bill in exchanged]
    up, change, snapshot = (
        file_bytes(specs, codec) for codec in (stage.exchange.upload, stage.exchange.download, "fp32")
    )
    trained_params = sum(bill.params for bill in exchanged)
    tensors = [spec for bill in exchanged for spec in units[bill.unit].tensors.values()]
    gradients = gradients_bytes(tensors, training=training)
    moments = optimizer_bytes(tensors, training=training)
    anchor = 4 * trained_params if training.proximal_mu else 0  # where the client started, for FedProx
    weights = sum(bill.nbytes for bill in bills)
    sample = sum(bill.saved_bytes for bill in bills)
    activations = micro * sample + sum(bill.fixed_bytes for bill in bills)
    return StageCost(
        stage=number,
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
        tokens=dict(tokens),
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=moments,
        activations_bytes=activations,
        peak_bytes=weights + gradients + moments + activations + anchor,
        batch_size=training.batch_size,
        micro_batch_size=micro,
        sample_bytes=sample,
        fill_flops=sum(bill.fill_flops for bill in bills),
        cache_bytes=sum(4 * views * tokens[modality] * widths[modality] for modality, views in kept.items()),
        units=bills,
    )


def _kept(bill: UnitBill, *, views: Mapping[str, int], new: set[str]) -> UnitBill:
    """Bills a frozen unit whose outputs are kept: it is neither loaded nor run, but once where it is newly frozen."""
    count = 0 if bill.trained else views.get(bill.unit.partition(".")[0], 0)
    if not count:
        return bill
    fill = count * bill.forward_flops if bill.unit in new else 0
    return replace(bill, nbytes=0, forward_flops=0, fill_flops=fill)


def _bills(
    present: Iterable[str],
    *,
    trained: set[str],
    units: Mapping[str, Unit],
    tokens: Mapping[str, int],
    item_bytes: int,
    variants: Mapping[str, str],
) -> tuple[UnitBill, ...]:
    """Bills the units; in each modality the first trained one lies at the cut: its input needs no gradient."""
    bills = []
    reached: set[str] = set()
    for name in present:
        modality, _, suffix = name.partition(".")
        unit, is_trained, count = units[name], name in trained, tokens.get(modality, 0)
        at_cut = modality not in reached and modality in tokens
        cost = unit.cost_as(variants.get(name, "full"))
        bills.append(
            UnitBill(
                unit=name,
                part=suffix.partition(".")[0] or name,
                trained=is_trained,
                params=unit.num_params,
                nbytes=unit.nbytes,
                file_bytes=layout(unit.named(name)).nbytes,
                forward_flops=cost.forward.at(count),
                backward_flops=cost.backward_flops(count, at_cut=at_cut) if is_trained else 0,
                saved_bytes=cost.saved_bytes(count, item_bytes=item_bytes, at_cut=at_cut) if is_trained else 0,
                fixed_bytes=cost.fixed(item_bytes=item_bytes) if is_trained else 0,
                input_bytes=4 * cost.input.at(count) if is_trained else 0,
                recomputed_flops=cost.recomputed.at(count) if is_trained else 0,
            )
        )
        if is_trained:
            reached.add(modality)
    return tuple(bills)
