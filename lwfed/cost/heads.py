"""The heads as formulas: a projection head per modality with its adapters, the prediction head, the temperature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lwfed.catalog.blocks import linear
from lwfed.catalog.costs import Architecture, Count, Unit, UnitCost
from lwfed.catalog.encoder import encoder_family
from lwfed.cost.bills import UnitBill
from lwfed.spec.model import EncoderSpec, ProjectionSpec, SupervisedSpec
from lwfed.types.tensors import TensorSpec

BATCH_NORM_BYTES = 2 * 4
"""Bytes of a feature's mean and deviation over the batch, saved in fp32 for the backward pass."""


def adapters(encoder: EncoderSpec, *, architecture: Architecture) -> dict[str, Unit]:
    """Returns the adapters of an encoder whose width grows, `adapter.1` ...: a Linear layer without bias, which saves
    the feature that it reads.
    """
    widths = encoder_family(encoder.family).widths
    of_depth = {} if widths is None else dict(enumerate(widths(encoder)))
    products = {depth: width * architecture.width for depth, width in of_depth.items() if width != architecture.width}
    return {
        f"adapter.{depth}": Unit(
            {"weight": TensorSpec((architecture.width, of_depth[depth]))},
            UnitCost(
                forward=Count(2 * count),
                backward=Count(4 * count),
                input_gradient=Count(2 * count),
                saved=Count(of_depth[depth]),
                weight_copies=count,
            ),
        )
        for depth, count in products.items()
    }


def projection_head(spec: ProjectionSpec, *, architecture: Architecture) -> Unit:
    """Returns a modality's projection head: [Linear, Dropout, BatchNorm, ReLU] x (layers - 1), Linear, BatchNorm.

    A hidden layer saves, per sample, BatchNorm's input, ReLU's output (the next layer's input) and the dropout's noise
    if it has any: up to three times its width. The last BatchNorm saves its input.

    Args:
        spec: The head's sizes.
        architecture: The encoder below; its width is the head's input, and its last state is saved for the feature.
    """
    tensors: dict[str, TensorSpec] = {}
    fan_in, products = architecture.width, 0
    for i in range(spec.layers - 1):
        tensors |= linear(f"hidden.{i}.linear", fan_in, spec.hidden, bias=False)
        tensors |= {
            f"hidden.{i}.norm.weight": TensorSpec((spec.hidden,)),
            f"hidden.{i}.norm.bias": TensorSpec((spec.hidden,)),
            **_statistics(f"hidden.{i}.norm", spec.hidden),
        }
        products += fan_in * spec.hidden
        fan_in = spec.hidden
    tensors |= linear("out.linear", fan_in, spec.out, bias=False) | _statistics("out.norm", spec.out)
    products += fan_in * spec.out
    maps = (spec.layers - 1) * (3 if spec.dropout > 0 else 2)
    first_out = spec.hidden if spec.layers > 1 else spec.out
    own = Count(maps * spec.hidden + spec.out)
    cost = UnitCost(
        forward=Count(2 * products),
        backward=Count(4 * products),
        input_gradient=Count(2 * architecture.width * first_out),
        saved=architecture.pooled + own,
        fixed_bytes=BATCH_NORM_BYTES * ((spec.layers - 1) * spec.hidden + spec.out),
        weight_copies=products,
    )
    row = replace(cost, saved=architecture.pooled_row + own)
    return Unit(tensors=tensors, cost=cost, variants={"row": row, "absorbed": row})


def _statistics(name: str, width: int) -> dict[str, TensorSpec]:
    return {
        f"{name}.running_mean": TensorSpec((width,), buffer=True),
        f"{name}.running_var": TensorSpec((width,), buffer=True),
        f"{name}.num_batches_tracked": TensorSpec((), dtype="I64", buffer=True),
    }


def prediction_head(spec: SupervisedSpec, *, fan_in: int, num_classes: int) -> Unit:
    """Returns the prediction head: Linear over the fused projections, Dropout, ReLU, Linear.

    It saves its input, ReLU's output, and the dropout's noise if it has any.

    Args:
        spec: The objective.
        fan_in: Width of the fused projections.
        num_classes: C.
    """
    products = fan_in * spec.hidden + spec.hidden * num_classes
    return Unit(
        tensors=linear("hidden", fan_in, spec.hidden) | linear("out", spec.hidden, num_classes),
        cost=UnitCost(
            forward=Count(2 * products),
            backward=Count(4 * products),
            input_gradient=Count(2 * fan_in * spec.hidden),
            saved=Count(fan_in + (2 if spec.dropout > 0 else 1) * spec.hidden),
            weight_copies=products,
        ),
    )


def temperature() -> Unit:
    """Returns the learnable temperature: one number, whose use belongs to the loss."""
    return Unit(tensors={"log": TensorSpec(())})


def with_received_heads(bills: Iterable[UnitBill], *, width: int) -> tuple[UnitBill, ...]:
    """Adjusts the bills for alignment: each projection head is there twice, and the received one runs forward only.

    Args:
        bills: Bills without alignment.
        width: P.
    """
    return tuple(
        replace(
            bill,
            nbytes=2 * bill.nbytes,
            forward_flops=2 * bill.forward_flops,
            saved_bytes=bill.saved_bytes + 2 * 4 * width,
        )
        if bill.part == "projection"
        else bill
        for bill in bills
    )
