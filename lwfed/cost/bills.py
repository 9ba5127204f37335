"""The costs of one unit of a model in a stage: parameters, bytes, FLOPs of both passes, and saved activations."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from lwfed.catalog.costs import Unit
from lwfed.types.tensors import layout


@dataclass(frozen=True, slots=True)
class UnitBill:
    """The costs of one unit in a stage.

    Attributes:
        unit: Its name, such as `image.blocks.3`.
        part: One of `stage_cost.PARTS`.
        trained: Whether it is trained, and therefore exchanged.
        params: Number of parameters.
        nbytes: Bytes of its tensors in memory.
        file_bytes: Bytes of its safetensors file.
        forward_flops: FLOPs per sample.
        backward_flops: FLOPs per sample; 0 if it is frozen.
        saved_bytes: Activations saved for the backward pass, per sample; 0 if it is frozen.
        fixed_bytes: Activations saved for the backward pass that do not depend on the batch size.
        input_bytes: Bytes of a block's input, per sample; 0 if it is frozen.
        recomputed_flops: FLOPs of recomputing a block, per sample; 0 if it is frozen.
        alone_bytes: Activations that a block saves if nothing before it is saved, per sample; 0 if it is frozen.
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
    input_bytes: int = 0
    recomputed_flops: int = 0
    alone_bytes: int = 0


def unit_bills(
    present: Iterable[str],
    *,
    trained: set[str],
    units: Mapping[str, Unit],
    tokens: Mapping[str, int],
    item_bytes: int,
    variants: Mapping[str, str],
) -> tuple[UnitBill, ...]:
    """Returns the costs of units; each modality's first trained unit is at the cut, so its input needs no gradient.

    Args:
        present: Names of the present units, from input to output.
        trained: Names of the trained units.
        units: Every unit of the model.
        tokens: Modality -> number of tokens to count with.
        item_bytes: Bytes per item of an activation.
        variants: Unit -> how the last block is computed, if not in full.

    Returns:
        One bill per unit.
    """
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
                alone_bytes=cost.saved_bytes(count, item_bytes=item_bytes, at_cut=True) if is_trained else 0,
            )
        )
        if is_trained:
            reached.add(modality)
    return tuple(bills)


def without_cached(bills: Iterable[UnitBill], *, kept: Collection[str], frozen: set[str]) -> tuple[UnitBill, ...]:
    """Adjusts the bills of frozen units whose outputs are cached: steps neither load nor run them.

    Args:
        bills: Bills without caching.
        kept: Modalities whose outputs are cached.
        frozen: Units that no client trains.
    """
    return tuple(
        replace(bill, nbytes=0, forward_flops=0)
        if bill.unit in frozen and bill.unit.partition(".")[0] in kept
        else bill
        for bill in bills
    )
