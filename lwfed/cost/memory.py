"""What training keeps beside the weights: gradients, AdamW's moments, activations, under the options that shrink them.

The options are `training.step_in_backward` (one gradient at a time), `training.moments` (2 or about 1 byte each) and
`training.activation_checkpointing` (a block's input, and the inside of one block at a time).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lwfed.cost.bills import UnitBill
from lwfed.plan.stages import TrainingPlan
from lwfed.types.tensors import TensorSpec

SCALE_BLOCK = 256
"""Values that share a scale in int8; a test compares it with the optimiser's own."""
SCALE_BYTES = 4


def gradients_bytes(trained: Iterable[TensorSpec], *, training: TrainingPlan) -> int:
    """Returns the bytes of the gradients that are alive at once: of all parameters, or of the largest.

    Args:
        trained: Trained tensors; buffers have no gradient.
        training: How a client trains.
    """
    sizes = [spec.nbytes for spec in trained if not spec.buffer]
    return max(sizes, default=0) if training.step_in_backward else sum(sizes)


def optimizer_bytes(trained: Iterable[TensorSpec], *, training: TrainingPlan) -> int:
    """Returns the bytes of AdamW's two moments; in int8 with a scale each for every block of a tensor's values.

    Args:
        trained: Trained tensors; buffers have no moments.
        training: How a client trains.
    """
    counts = [spec.numel for spec in trained if not spec.buffer]
    if training.moments == "int8":
        return 2 * sum(count + SCALE_BYTES * -(-count // SCALE_BLOCK) for count in counts)
    return 2 * {"fp32": 4, "bf16": 2}[training.moments] * sum(counts)


def checkpointed(bills: Sequence[UnitBill]) -> tuple[UnitBill, ...]:
    """Returns the bills of a pass in which trained blocks are computed again in the backward pass.

    Each keeps its input, and costs most of its forward pass once more. One at a time has all its activations; the
    largest stands for it and keeps its bill of bytes. A last block for one token keeps little, and is not among them:
    it is billed no input.
    """
    blocks = [bill for bill in bills if bill.trained and bill.part == "blocks" and bill.input_bytes]
    largest = max(blocks, key=lambda bill: bill.saved_bytes - bill.input_bytes, default=None)
    changed = {
        bill.unit: replace(
            bill,
            backward_flops=bill.backward_flops + bill.recomputed_flops,
            saved_bytes=bill.saved_bytes if bill is largest else bill.input_bytes,
            fixed_bytes=bill.fixed_bytes if bill is largest else 0,
        )
        for bill in blocks
    }
    return tuple(changed.get(bill.unit, bill) for bill in bills)
