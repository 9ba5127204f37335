"""Manifests of blocks: the names, digests, types and shapes of their tensors, without torch.

A block's digest is the sha256 of canonical JSON {tensor name: tensor digest}. So each tensor is hashed only once for
the block's address, the checkpoint's digest, and the check of a single tensor that is read by its byte range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lwfed.types.canonical import digest_of
from lwfed.types.errors import CheckpointError
from lwfed.types.tensors import Layout, TensorSpec, layout

SHARED = "blocks/sha256"
"""The folder of the shared blocks."""
_REMEDY = "restore it, or train again with --fresh"


@dataclass(frozen=True)
class Block:
    """The manifest of a block.

    Attributes:
        tensors: Tensor name -> (digest, type and shape).
    """

    tensors: dict[str, tuple[str, TensorSpec]]

    @cached_property
    def digest(self) -> str:
        """The block's digest."""
        return digest_of({name: digest for name, (digest, _) in self.tensors.items()})

    @cached_property
    def file(self) -> Layout:
        """The layout of its file."""
        return layout(self.specs)

    @property
    def nbytes(self) -> int:
        """Length of the file in bytes."""
        return self.file.nbytes

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Tensor name -> type and shape."""
        return {name: spec for name, (_, spec) in self.tensors.items()}

    def to_values(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "digest": self.digest,
            "nbytes": self.nbytes,
            "tensors": {
                name: {"digest": digest, "dtype": spec.dtype, "shape": list(spec.shape)}
                for name, (digest, spec) in self.tensors.items()
            },
        }

    @staticmethod
    def from_values(values: Mapping[str, Any]) -> Block:
        """Parses JSON values. Raises CheckpointError if they do not match their digest."""
        try:
            block = Block(
                {
                    name: (item["digest"], TensorSpec(shape=tuple(item["shape"]), dtype=item["dtype"]))
                    for name, item in values["tensors"].items()
                }
            )
            stated = (values["digest"], values["nbytes"])
            sound = stated == (block.digest, block.nbytes)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"a block's manifest is damaged: {error!r}", remedy=_REMEDY) from None
        if not sound:
            raise CheckpointError(f"the manifest of block {str(stated[0])[:12]} is damaged", remedy=_REMEDY)
        return block


def file_name(block: Block) -> str:
    """Returns the name of a block's file in any folder."""
    return f"{block.digest}.safetensors"


def block_key(block: Block) -> str:
    """Returns the key of a block among the shared ones."""
    return f"{SHARED}/{file_name(block)}"
