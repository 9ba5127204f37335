"""The exchange: changes travel encoded, and what an encoding rounds off is kept and added to the next one.

Error feedback on both ways (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847, Algorithm 1, with the update
in place of the gradient; both ways at once: Tang et al. 2019, arXiv 1905.05957, Algorithm 1). Parameters are sent as
changes; buffers and integers as their values. fp32 is the identity: everything is sent as its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
    """Returns what a client sends and what it keeps back.

    Args:
        trained: theta_n after training.
        start: theta that the round started from, of the same names or more.
        kept: What it kept back last time; a name that is missing counts as zero.
        specs: Name -> type and shape.
        codec: How changes are sent; fp32 is the identity: values travel, and nothing is kept back.
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


def received(name: str, sent: Mapping[str, Tensor], *, spec: TensorSpec, codec: Codec) -> Tensor:
    """Returns what arrives of a tensor: its value, or the change that an encoding decodes to.

    Args:
        name: The tensor.
        sent: What travelled, among others.
        spec: Its type and shape before it was sent.
        codec: How it was sent; fp32 is the identity.
    """
    return decode(name, sent) if is_encoded(spec, codec) else sent[name]


@dataclass(frozen=True)
class Published:
    """What the server sends of one tensor.

    Attributes:
        sent: The tensors that travel.
        value: The global model's tensor that every client makes of them.
        left: What was rounded off so far, in fp32, to be added next time; None where nothing is encoded.
    """

    sent: Tensors
    value: Tensor
    left: Tensor | None


def publish(
    name: str,
    target: Tensor,
    *,
    start: Callable[[str], Tensor],
    kept: Tensor | None,
    spec: TensorSpec,
    codec: Codec,
    seed: str,
) -> Published:
    """Encodes the server's change of one tensor.

    Args:
        name: The tensor.
        target: What the round's aggregation made of it.
        start: Name -> the global model's tensor of the round before.
        kept: What was rounded off so far; None for nothing.
        spec: The tensor's type and shape.
        codec: How it is sent; fp32 is the identity.
        seed: Of the rounding.

    Raises:
        DivergedError: The change is NaN or infinite.
    """
    if not is_encoded(spec, codec):
        return Published(sent={name: target}, value=target, left=None)
    before, aim = start(name), target.double()
    if kept is not None:
        aim = aim + kept
    parts = encode(name, (aim - before).float(), codec=codec, generator=generator_of(derive(seed, name)))
    value = before + decode(name, parts)
    return Published(sent=parts, value=value, left=(aim - value).float())


def add_changes(
    before: Mapping[str, Tensor], sent: Mapping[str, Tensor], *, specs: Mapping[str, TensorSpec], codec: Codec
) -> Tensors:
    """Returns the global model that a published change makes of the one before it: the same bits wherever it is done.

    Args:
        before: The global model of the round before, on the CPU.
        sent: What was published.
        specs: Name -> type and shape of the model's tensors.
        codec: How it was published.
    """
    tensors = {name: received(name, sent, spec=spec, codec=codec) for name, spec in specs.items()}
    return {name: before[name] + t if is_encoded(specs[name], codec) else t for name, t in tensors.items()}


def check_update(
    client: str, *, found: Mapping[str, TensorSpec], specs: Mapping[str, TensorSpec], codec: Codec
) -> None:
    """Refuses an update that does not hold exactly the tensors of the plan, of the types and shapes of its exchange.

    Args:
        client: Whose it is.
        found: What it holds.
        specs: What was to be trained.
        codec: How it was to be sent.

    Raises:
        CheckpointError: A tensor is missing, is not expected, or is of another type or shape.
    """
    expected = encoded_specs(specs, codec)
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    odd = next((name for name, spec in expected.items() if found.get(name) != spec), None)
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which the plan does not name"
        problem = f"the update of {client} {what} ({len(missing)} missing, {len(extra)} too many)"
    elif odd is not None:
        problem = f"the update of {client} has {odd} as {found[odd]}, not {expected[odd]}"
    else:
        return
    raise CheckpointError(problem, remedy="run the same lwfed version on all clients")
