"""The exchange: changes travel encoded, and what an encoding rounds off is kept and added to the next one.

Error feedback on both ways (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847, Algorithm 1, with the update
in place of the gradient; both ways at once: Tang et al. 2019, arXiv 1905.05957, Algorithm 1). Parameters are sent as
changes; buffers and integers as their values.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lwfed.federated.codecs import decode, encode, generator_of
from lwfed.types.encoded import Codec, encoded_specs, is_encoded
from lwfed.types.errors import CheckpointError
from lwfed.types.seeds import derive
from lwfed.types.tensors import TensorSpec

Tensors = dict[str, Tensor]


def upload(
    trained: Mapping[str, Tensor],
    *,
    start: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    specs: Mapping[str, TensorSpec],
    codec: Codec,
    seed: str,
) -> tuple[Tensors, Tensors]:
    """Gives what a client sends and what it keeps back.

    Args:
        trained: theta_n after training.
        start: theta that the round started from, of the same names or more.
        kept: What it kept back last time; a name that is missing counts as zero.
        specs: Name -> type and shape.
        codec: `bf16` or `int8`.
        seed: Of the rounding.

    Returns:
        The tensors sent, and what was rounded off each change: (theta_n - theta + kept) - decoded, in fp32.

    Raises:
        DivergedError: A change is NaN or infinite.
    """
    sent, left = Tensors(), Tensors()
    for name in sorted(trained):
        value = trained[name].detach().cpu()
        if not is_encoded(specs[name], codec):
            sent[name] = value
            continue
        meant = value - start[name]
        if name in kept:
            meant.add_(kept[name])
        parts = encode(name, meant, codec=codec, generator=generator_of(derive(seed, name)))
        sent |= parts
        left[name] = meant.sub_(decode(name, parts))
    return sent, left


def publish(
    name: str, target: Tensor, *, before: Tensor, kept: Tensor | None, codec: Codec, seed: str
) -> tuple[Tensors, Tensor, Tensor]:
    """Gives the server's change of one parameter, and the global model that all decode from it.

    Args:
        name: The parameter.
        target: What the round's aggregation made of it.
        before: The global model of the round before.
        kept: What was rounded off so far; None for nothing.
        codec: `bf16` or `int8`.
        seed: Of the rounding.

    Returns:
        The tensors published; the new global value, `add_change(before, ...)` of them; what is rounded off now.

    Raises:
        DivergedError: The change is NaN or infinite.
    """
    aim = target.double()
    if kept is not None:
        aim = aim + kept
    parts = encode(name, (aim - before).float(), codec=codec, generator=generator_of(derive(seed, name)))
    value = before + decode(name, parts)
    return parts, value, (aim - value).float()


def add_changes(
    before: Mapping[str, Tensor], sent: Mapping[str, Tensor], *, specs: Mapping[str, TensorSpec], codec: Codec
) -> Tensors:
    """Gives the global model that a published change makes of the one before it: the same bits wherever it is done.

    Args:
        before: The global model of the round before, on the CPU.
        sent: What was published.
        specs: Name -> type and shape of the model's tensors.
        codec: `bf16` or `int8`.
    """
    return {
        name: before[name] + decode(name, sent) if is_encoded(spec, codec) else sent[name]
        for name, spec in specs.items()
    }


def check_specs(client: str, *, found: Mapping[str, TensorSpec], specs: Mapping[str, TensorSpec], codec: Codec) -> None:
    """Refuses an update in which a tensor has another type or shape than the plan's exchange.

    Raises:
        CheckpointError: One differs.
    """
    for name, spec in encoded_specs(specs, codec).items():
        if found.get(name) != spec:
            raise CheckpointError(
                f"the update of {client} has {name} as {found.get(name)}, not {spec}",
                remedy="run the same lwfed version on all clients",
            )
