"""What one unit of a model costs in a stage: its parameters and bytes, its two passes, what it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from lwfed.catalog.costs import Unit
from lwfed.types.tensors import layout


@dataclass(frozen=True, slots=True)
class UnitBill:
    """What one unit costs in a stage.

    Attributes:
        unit: Its name, such as `image.blocks.3`.
        part: `stem`, `blocks`, `norm`, `projection`, `fusion` or `prediction`.
        trained: Whether it is trained, and so exchanged.
        params: Number of parameters.
        nbytes: Bytes of its tensors in memory.
        file_bytes: Bytes of its safetensors file.
        forward_flops: Per sample.
        backward_flops: Per sample; 0 where it is frozen.
        saved_bytes: Activations kept for the backward pass, per sample; 0 where it is frozen.
        fixed_bytes: The same, once and not per sample.
        fill_flops: Per example, once per stage: where its outputs are kept and were not before.
        input_bytes: Of a block's input, per sample; 0 where it is frozen.
        recomputed_flops: Of computing a block again, per sample; 0 where it is frozen.
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


def unit_bills(
    present: Iterable[str],
    *,
    trained: set[str],
    units: Mapping[str, Unit],
    tokens: Mapping[str, int],
    item_bytes: int,
    variants: Mapping[str, str],
) -> tuple[UnitBill, ...]:
    """Bills units; in each modality the first trained one lies at the cut: its input needs no gradient.

    Args:
        present: Their names, in the order data passes them.
        trained: Those that are trained.
        units: Every unit of the model.
        tokens: Modality -> tokens to count with.
        item_bytes: Of an activation.
        variants: Unit -> how its last block is computed, where not in full.

    Returns:
        A bill for each.
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
            )
        )
        if is_trained:
            reached.add(modality)
    return tuple(bills)


def with_kept_outputs(bills: Iterable[UnitBill], *, views: Mapping[str, int], new: set[str]) -> tuple[UnitBill, ...]:
    """Bills frozen units whose outputs are kept: they are neither loaded nor run, but once where newly frozen.

    Args:
        bills: As if nothing were kept.
        views: Modality -> views of an example that are kept; others keep nothing.
        new: Units that are newly frozen.
    """
    return tuple(_kept(bill, views=views, new=new) for bill in bills)


def _kept(bill: UnitBill, *, views: Mapping[str, int], new: set[str]) -> UnitBill:
    count = 0 if bill.trained else views.get(bill.unit.partition(".")[0], 0)
    if not count:
        return bill
    fill = count * bill.forward_flops if bill.unit in new else 0
    return replace(bill, nbytes=0, forward_flops=0, fill_flops=fill)
