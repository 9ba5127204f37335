"""Counting of an encoder's tensors, FLOPs and saved activations on a model without weights.

For encoders that no formula describes. Nothing is computed: the model is built on the meta device and runs with fake
CPU tensors, so that kernels are chosen as on a CPU but only shapes are propagated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from lwfed.catalog.encoder import TOKENS, Input
from lwfed.models.build import tensor_specs
from lwfed.models.families import family_of
from lwfed.models.protocol import Encoder, LastBlock, State
from lwfed.models.sample import Sample, made_up, sample_of
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import SpecError

ITEM_BYTES = 4
HOWS: tuple[LastBlock, ...] = ("row", "absorbed")


class SavedBytes:
    """Counts the bytes that autograd saves while `watch` is active: unique storages, each under its first label.

    Args:
        exclude: Tensors that are not counted: parameters, buffers, the batch.
    """

    def __init__(self, exclude: Sequence[Tensor]) -> None:
        self._seen = {StorageWeakRef(tensor.untyped_storage()) for tensor in exclude}
        self.label = ""
        self.nbytes: dict[str, int] = {}

    @property
    def total(self) -> int:
        """Total bytes of all labels."""
        return sum(self.nbytes.values())

    def add(self, tensor: Tensor) -> int:
        """Counts a tensor's storage if it is new.

        Returns:
            The bytes added.
        """
        storage = tensor.untyped_storage()
        if StorageWeakRef(storage) in self._seen:
            return 0
        self._seen.add(StorageWeakRef(storage))
        self.nbytes[self.label] = self.nbytes.get(self.label, 0) + storage.nbytes()
        return storage.nbytes()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Counts what autograd saves in the body."""

        def pack(tensor: Tensor) -> Tensor:
            self.add(tensor)
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


def count(encoder: EncoderSpec) -> dict[str, Any]:
    """Counts a whole encoder.

    Args:
        encoder: Any encoder that `lwfed.models.build` can build.

    Returns:
        A JSON value for the ledger's `Architecture.from_values`: name, depth, width, tokens, and for each unit its
        tensors and its counts per sample, as `[constant, linear, square]` in the number of tokens: forward, backward,
        input-gradient and recomputed FLOPs, items of a block's input, and saved items; for a block also these counts
        as the last block, computed for the feature's token alone. Inputs of a fixed size have only the constant.

    Raises:
        SpecError: The architecture or an override is wrong.
    """
    sample = sample_of(encoder)
    with torch.device("meta"):
        module = family_of(encoder).build(encoder, depth=None)
    specs = tensor_specs(module)
    lengths = _lengths(sample, longest=encoder.max_tokens)
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}
    try:
        with FakeTensorMode():
            values = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
            module.load_state_dict(values, assign=True)
            module.train()
            runs = [_per_sample(module, sample, length) for length in lengths]
            last = _states(module, made_up(sample, batch=2, length=lengths[-1]))[-1]
    except (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError, AssertionError) as error:
        line = " ".join(str(error).split())[:300]
        raise SpecError(
            f"this {encoder.family} cannot compute its own inputs: {line}", remedy="correct `config`"
        ) from None
    fitted = {
        unit: {what: _fit([run[unit][what] for run in runs], lengths) for what in costs}
        for unit, costs in runs[0].items()
    }
    units = {}
    for unit in fitted:
        if unit.startswith("pooled") or "/" in unit:
            continue
        own = {name.removeprefix(f"{unit}."): spec for name, spec in specs.items() if name.startswith(f"{unit}.")}
        weights = sum(spec.numel for spec in own.values() if len(spec.shape) > 1)
        weight_copies = 0 if unit == "stem" else weights
        units[unit] = {
            "tensors": {name: [spec.dtype, list(spec.shape), spec.buffer] for name, spec in own.items()},
            **_cost(fitted[unit], weight_copies),
            "variants": {
                how: _cost(fitted[f"{unit}/{how}"], weight_copies) for how in HOWS if f"{unit}/{how}" in fitted
            },
        }
    return {
        "name": encoder.arch or encoder.family,
        "depth": len(module.blocks),
        "width": module.width,
        "tokens": int(last.tokens.shape[1]),
        "pooled": fitted["pooled"]["saved"],
        "pooled_row": fitted.get("pooled/row", fitted["pooled"])["saved"],
        "units": units,
    }


def _cost(counts: dict[str, list[int]], weight_copies: int) -> dict[str, Any]:
    nothing = {what: [0, 0, 0] for what in ("input_saved", "saved_fp32", "copies")}
    fixed_bytes = ITEM_BYTES * counts.pop("fixed")[0]
    return nothing | counts | {"fixed_bytes": fixed_bytes, "weight_copies": weight_copies}


def _per_sample(module: Encoder, sample: Sample, length: int) -> dict[str, dict[str, int]]:
    """Counts each unit's costs per sample, as the difference between batches of three and of two.

    What a unit saves for a batch of any size, such as BatchNorm's statistics, is `fixed`.
    """
    two, three = (_run(module, made_up(sample, batch=batch, length=length)) for batch in (2, 3))
    return {
        unit: {what: three[unit][what] - two[unit][what] for what in two[unit]}
        | {"fixed": 3 * two[unit]["saved"] - 2 * three[unit]["saved"]}
        for unit in two
    }


def _states(module: Encoder, inputs: Any) -> list[State]:
    """Returns the state before each block, and the last one."""
    states = [module.embed(inputs)]
    for i in range(len(module.blocks)):
        states.append(module.advance(states[-1], start=i, stop=i + 1))
    return states


def _run(module: Encoder, inputs: Any) -> dict[str, dict[str, int]]:
    """Counts the units' costs for a batch, which passes through one unit at a time."""
    batch = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    saved = SavedBytes([*module.parameters(), *module.buffers(), *batch])
    costs = {"stem": _flops(lambda: module.embed(inputs).tokens, None)}
    with saved.watch():
        saved.label = "stem"
        states = [module.embed(inputs)]
        for i in range(len(module.blocks)):
            saved.label = f"blocks.{i}"
            states.append(module.advance(states[i], start=i, stop=i + 1))
        saved.label = "norm"
        feature = module.pool(states[-1])
        saved.label = "pooled"
        saved.add(feature)  # the projection head's first product saves it
    firsts = _first_equal(module, states)
    for i, first in enumerate(firsts):
        costs[f"blocks.{i}"] = _block_flops(module, states[i], i) if first == i else dict(costs[f"blocks.{first}"])
    if isinstance(getattr(module, "norm", None), nn.Module):
        costs["norm"] = dict.fromkeys(costs["stem"], 0)
    costs["pooled"] = {}
    for unit, cost in costs.items():
        cost["saved"] = saved.nbytes.get(unit, 0) // ITEM_BYTES
        if alone := cost.pop("alone", 0):
            cost["input_saved"] = cost["saved"] - alone  # below 0 if at the cut the block saves its input, too
    if type(module).advance_row is not Encoder.advance_row:
        for how in HOWS:
            for i, first in enumerate(firsts):
                if first == i:
                    costs |= _last_block(module, states[i], i, how)
                costs[f"blocks.{i}/{how}"] = costs[f"blocks.{first}/{how}"]
    return costs


def _first_equal(module: Encoder, states: Sequence[State]) -> list[int]:
    """Returns for each block the index of the first block with equal layers, rates and inputs, and so equal costs."""
    firsts: dict[Any, int] = {}
    return [firsts.setdefault((repr(block), states[i].tokens.shape), i) for i, block in enumerate(module.blocks)]


def _last_block(module: Encoder, state: State, index: int, how: LastBlock) -> dict[str, dict[str, int]]:
    """Counts a block as the last one, and the pooling after it, with and without a gradient of the input."""
    kept: list[dict[str, int]] = []

    def run(tokens: Tensor) -> Tensor:
        batch = [] if state.mask is None else [state.mask]
        saved = SavedBytes([*module.parameters(), *module.buffers(), *batch])
        with saved.watch():
            saved.label = "block"
            after = module.advance_row(State(tokens, state.mask), index=index, how=how)
            saved.label = "norm"
            feature = module.pool(after)
            saved.label = "pooled"
            saved.add(feature)
        kept.append({label: nbytes // ITEM_BYTES for label, nbytes in saved.nbytes.items()})
        return feature

    block = _flops(run, state.tokens)
    inside, at_cut = kept[0], kept[-1]
    for_input = inside["block"] - at_cut["block"]
    block |= {"saved": at_cut["block"], "saved_fp32": for_input, "input_saved": for_input}
    costs = {f"blocks.{index}/{how}": block, f"pooled/{how}": {"saved": at_cut["pooled"]}}
    if "norm" in at_cut:
        nothing = dict.fromkeys(("forward", "backward", "input_gradient"), 0)
        costs[f"norm/{how}"] = nothing | {"saved": at_cut["norm"]}
    return costs


def _block_flops(module: Encoder, state: State, index: int) -> dict[str, int]:
    def run(tokens: Tensor) -> Tensor:
        return module.advance(State(tokens, state.mask), start=index, stop=index + 1).tokens

    counts = _flops(run, state.tokens)
    module.recomputed = True
    again = _flops(run, state.tokens)["backward"] - counts["backward"]
    module.recomputed = False
    saved = SavedBytes([*module.parameters(), *module.buffers(), *([] if state.mask is None else [state.mask])])
    with saved.watch():
        run(state.tokens.detach())
    return counts | {"recomputed": again, "input": state.tokens.numel(), "alone": saved.total // ITEM_BYTES}


def _flops(run: Any, tokens: Tensor | None) -> dict[str, int]:
    """Counts the FLOPs of both passes, with and without a gradient of the input."""
    counts = []
    for needs_gradient in (True, False) if tokens is not None else (False,):
        arguments = () if tokens is None else (tokens.detach().clone().requires_grad_(needs_gradient),)
        with FlopCounterMode(display=False) as counter:
            output = run(*arguments)
            forward = counter.get_total_flops()
            output.sum().backward()
            counts.append((forward, counter.get_total_flops() - forward))
    return {"forward": counts[0][0], "backward": counts[0][1], "input_gradient": counts[0][1] - counts[-1][1],
            "recomputed": 0, "input": 0}  # fmt: skip


def _lengths(sample: Sample, *, longest: int) -> list[int]:
    """Chooses the numbers of tokens to count with: three if the input's length varies, else any one."""
    inputs = [sample] if isinstance(sample, Input) else list(sample.values())
    if not any(TOKENS in given.shape for given in inputs):
        return [1]
    return [longest - 2, longest - 1, longest] if longest > 3 else [longest]


def _fit(values: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Fits a quadratic polynomial to counts at three consecutive lengths, or a constant to a single count."""
    if len(values) == 1:
        return [values[0], 0, 0]
    first, second = values[1] - values[0], values[2] - values[1]
    square = (second - first) // 2
    linear = first - square * (lengths[0] + lengths[1])
    return [values[0] - linear * lengths[0] - square * lengths[0] ** 2, linear, square]
