"""How a model is computed to be evaluated: frozen blocks once for the same inputs, the last block for one token.

An evaluation embeds the same test examples after every round and at every stage. A process that evaluates again and
again keeps the outputs of the frozen blocks in memory, a batch at a time, and passes them only through the blocks that
are new. Whether outputs are kept decides nothing: the same operations run on the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from lwfed.data.batches import Batch
from lwfed.models.multimodal import Multimodal
from lwfed.models.protocol import LastBlock, State
from lwfed.params import digest
from lwfed.plan.stages import StagePlan
from lwfed.round.prefix import frozen_units
from lwfed.store.checkpoint import Checkpoint
from lwfed.types.canonical import digest_of

MAX_BYTES = 1 << 29
"""Of the outputs that a process keeps; the batches that come when it is reached are computed in full."""


class Kept(NamedTuple):
    """The outputs of a batch.

    Attributes:
        chain: Digests of the blocks that the batch has passed, from the stem on.
        state: Its tokens and mask, in host memory.
    """

    chain: tuple[str, ...]
    state: State


class KeptOutputs:
    """The outputs of frozen blocks for inputs that come again, by the inputs' content.

    Args:
        max_bytes: Bytes to keep at most.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._kept: dict[str, Kept] = {}
        self._max_bytes = max_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return sum(_nbytes(item.state) for item in self._kept.values())

    def find(self, name: str, *, chain: tuple[str, ...]) -> Kept | None:
        """Returns what is kept of a batch, if it has passed a leading part of a chain of blocks and no others."""
        found = self._kept.get(name)
        return found if found is not None and chain[: len(found.chain)] == found.chain else None

    def keep(self, name: str, *, chain: tuple[str, ...], state: State) -> None:
        """Keeps the outputs of a batch instead of earlier ones, if there is room."""
        self._kept.pop(name, None)
        if self.nbytes + _nbytes(state) <= self._max_bytes:
            mask = None if state.mask is None else state.mask.cpu()
            self._kept[name] = Kept(chain, State(state.tokens.cpu(), mask))

    def clear(self) -> None:
        """Forgets all of it."""
        self._kept = {}


@dataclass(frozen=True)
class Forward:
    """How a model is computed without gradients.

    Attributes:
        last_block: Modality -> how its last block is computed; of those left out, in full.
        chains: Modality -> digests of its stem and frozen blocks; without those of which nothing is frozen.
        encoders: Modality -> digest of its encoder's settings.
        kept: Keeps frozen blocks' outputs; None: nothing is kept.
    """

    last_block: Mapping[str, LastBlock] = field(default_factory=dict)
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)
    kept: KeptOutputs | None = None

    def __call__(self, module: Multimodal, batch: Batch) -> dict[str, Tensor]:
        """Embeds every modality of a batch that has an encoder: modality -> projections [b, P]."""
        return {m: self.project(module, m, batch.inputs[m]) for m in module.modalities if m in batch.inputs}

    def project(self, module: Multimodal, modality: str, inputs: Any) -> Tensor:
        """Returns the projections [b, P] of inputs, not normalised.

        Args:
            module: The model.
            modality: The modality.
            inputs: Its encoder's inputs, on the module's device.
        """
        chain = self.chains.get(modality, ())
        if self.kept is None or not chain:
            return module.project(modality, inputs, last_block=self.last_block)
        name = digest_of({"encoder": self.encoders[modality], "inputs": [*_contents(inputs)]})
        encoder, cut = module.encoder(modality), len(chain) - 1
        found = self.kept.find(name, chain=chain)
        if found is None:
            state = encoder.advance(encoder.embed(inputs), start=0, stop=cut)
        else:
            device, (tokens, mask) = next(module.parameters()).device, found.state
            state = State(tokens.to(device), None if mask is None else mask.to(device))
            state = encoder.advance(state, start=len(found.chain) - 1, stop=cut)
        if found is None or found.chain != chain:
            self.kept.keep(name, chain=chain, state=state)
        passed = {"tokens": state.tokens, **({} if state.mask is None else {"mask": state.mask})}
        return module.project(modality, passed, cut=cut, last_block=self.last_block)


WHOLE = Forward()
"""Computes all of a model, and keeps nothing."""


def forward_of(plan: StagePlan, checkpoint: Checkpoint, *, kept: KeptOutputs | None) -> Forward:
    """Returns how a stage's model is evaluated: its last blocks as in training.

    Args:
        plan: The stage.
        checkpoint: The model.
        kept: Keeps frozen blocks' outputs.
    """
    frozen = {modality: frozen_units(plan, modality) for modality in plan.model.modalities}
    return Forward(
        last_block=plan.levers.last_block,
        chains={m: tuple(checkpoint.blocks[unit].digest for unit in units) for m, units in frozen.items() if units},
        encoders={m: digest_of({m: encoder.model_dump(mode="json")}) for m, encoder in plan.model.encoders.items()},
        kept=kept,
    )


def _contents(inputs: Any) -> Iterator[str]:
    """Yields the names and digests of the tensors of an encoder's inputs."""
    named: Mapping[str, Tensor] = inputs if isinstance(inputs, Mapping) else {"": inputs}
    for name in sorted(named):
        yield f"{name} {digest(named[name])}"


def _nbytes(state: State) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state if tensor is not None)
