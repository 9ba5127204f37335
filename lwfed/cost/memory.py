"""Training memory besides the weights: gradients, AdamW's moments and activations, with the options that reduce them.

The options are `training.step_in_backward` (one gradient at a time), `training.moments` (2 or about 1 byte each) and
`training.activation_checkpointing` (each block's input, and the inside of one block at a time).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lwfed.cost.bills import UnitBill
from lwfed.plan.stages import TrainingPlan
from lwfed.types.tensors import TensorSpec

SCALE_BLOCK = 256
"""Number of values that share a scale in int8; a test compares it with the optimiser's."""
SCALE_BYTES = 4


def gradients_bytes(trained: Iterable[TensorSpec], *, training: TrainingPlan) -> int:
    """Returns the bytes of the gradients alive at once: those of all parameters, or of the largest one.

    Args:
        trained: Trained tensors; buffers have no gradient.
        training: Settings of local training.
    """
    sizes = [spec.nbytes for spec in trained if not spec.buffer]
    return max(sizes, default=0) if training.step_in_backward else sum(sizes)


def optimizer_bytes(trained: Iterable[TensorSpec], *, training: TrainingPlan) -> int:
    """Returns the bytes of AdamW's two moments; in int8, each block of a tensor's values has a scale per moment.

    Args:
        trained: Trained tensors; buffers have no moments.
        training: Settings of local training.
    """
    counts = [spec.numel for spec in trained if not spec.buffer]
    if training.moments == "int8":
        return 2 * sum(count + SCALE_BYTES * -(-count // SCALE_BLOCK) for count in counts)
    return 2 * {"fp32": 4, "bf16": 2}[training.moments] * sum(counts)


def checkpointed(bills: Sequence[UnitBill]) -> tuple[UnitBill, ...]:
    """Returns the bills for training that recomputes trained blocks in the backward pass.

    Each block saves its input, and repeats most of its forward pass. One block at a time has all its activations, so
    the largest block's bytes stay. A last block computed for one token saves little and is not recomputed: its
    `input_bytes` is 0.
    """
    blocks = [bill for bill in bills if bill.trained and bill.part == "blocks" and bill.input_bytes]
    largest = max(blocks, key=lambda bill: bill.alone_bytes - bill.input_bytes, default=None)
    changed = {
        bill.unit: replace(
            bill,
            backward_flops=bill.backward_flops + bill.recomputed_flops,
            saved_bytes=bill.alone_bytes if bill is largest else bill.input_bytes,
            fixed_bytes=bill.fixed_bytes if bill is largest else 0,
        )
        for bill in blocks
    }
    return tuple(changed.get(bill.unit, bill) for bill in bills)
