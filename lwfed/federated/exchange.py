"""The exchange: changes are sent encoded, and the rounding error of each is added to the next one.

Error feedback in both directions (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847, Algorithm 1, with the
update instead of the gradient; both directions at once: Tang et al. 2019, arXiv 1905.05957, Algorithm 1). Parameters
are sent as changes; buffers and integers as values. fp32 is the identity: everything is sent as a value.
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
    residual: Mapping[str, Tensor],
    specs: Mapping[str, TensorSpec],
    codec: Codec,
    seed: str,
) -> tuple[Tensors, Tensors]:
    """Returns the tensors that a client sends, and its new residual.

    Args:
        trained: theta_n after training.
        start: theta at the start of the round; may have more names.
        residual: The residual of the last upload; a missing name counts as zero.
        specs: Name -> type and shape.
        codec: Encodes changes; fp32 is the identity: values are sent, and there is no residual.
        seed: Seed of the rounding.

    Returns:
        The tensors sent, and the rounding error of each change: (theta_n - theta + residual) - decoded, in fp32.

    Raises:
        DivergedError: A change is NaN or infinite.
    """
    sent, left = Tensors(), Tensors()
    for name in sorted(trained):
        value = trained[name].detach().cpu()
        if not is_encoded(specs[name], codec):
            sent[name] = value
            continue
        change = value - start[name]
        if name in residual:
            change.add_(residual[name])
        parts = encode(name, change, codec=codec, generator=generator_of(derive(seed, name)))
        sent |= parts
        left[name] = change.sub_(decode(name, parts))
    return sent, left


def received(name: str, sent: Mapping[str, Tensor], *, spec: TensorSpec, codec: Codec) -> Tensor:
    """Returns a tensor as received: its value, or the decoded change.

    Args:
        name: The tensor.
        sent: The tensors sent, possibly with those of other names.
        spec: Its type and shape before encoding.
        codec: The codec it was sent with; fp32 is the identity.
    """
    return decode(name, sent) if is_encoded(spec, codec) else sent[name]


@dataclass(frozen=True)
class Published:
    """The server's published change of one tensor.

    Attributes:
        sent: The tensors sent.
        value: The global model's tensor that every client computes from them.
        left: The accumulated rounding error, in fp32, to be added next time; None if the tensor is not encoded.
    """

    sent: Tensors
    value: Tensor
    left: Tensor | None


def publish(
    name: str,
    target: Tensor,
    *,
    start: Callable[[str], Tensor],
    residual: Tensor | None,
    spec: TensorSpec,
    codec: Codec,
    seed: str,
) -> Published:
    """Encodes the server's change of one tensor.

    Args:
        name: The tensor.
        target: Its value after the round's aggregation.
        start: Returns the tensor of a name in the previous round's global model.
        residual: The accumulated rounding error, or None.
        spec: The tensor's type and shape.
        codec: Encodes the change; fp32 is the identity.
        seed: Seed of the rounding.

    Raises:
        DivergedError: The change is NaN or infinite.
    """
    if not is_encoded(spec, codec):
        return Published(sent={name: target}, value=target, left=None)
    before, aim = start(name), target.double()
    if residual is not None:
        aim = aim + residual
    parts = encode(name, (aim - before).float(), codec=codec, generator=generator_of(derive(seed, name)))
    value = before + decode(name, parts)
    return Published(sent=parts, value=value, left=(aim - value).float())


def add_changes(
    before: Mapping[str, Tensor], sent: Mapping[str, Tensor], *, specs: Mapping[str, TensorSpec], codec: Codec
) -> Tensors:
    """Adds a published change to the previous global model, with the same bits on every machine.

    Args:
        before: The previous round's global model, on the CPU.
        sent: The published tensors.
        specs: Name -> type and shape of the model's tensors.
        codec: The codec that they were published with.
    """
    tensors = {name: received(name, sent, spec=spec, codec=codec) for name, spec in specs.items()}
    return {name: before[name] + t if is_encoded(specs[name], codec) else t for name, t in tensors.items()}


def check_update(
    client: str, *, found: Mapping[str, TensorSpec], specs: Mapping[str, TensorSpec], codec: Codec
) -> None:
    """Checks that an update holds exactly the plan's tensors, with the types and shapes of its codec.

    Args:
        client: The client that sent it.
        found: The update's tensors.
        specs: The tensors to be trained.
        codec: The codec of the upload.

    Raises:
        CheckpointError: A tensor is missing, unexpected, or has another type or shape.
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
