"""Laws of the tensor layout: a file that the safetensors library reads, and units of names."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as reference

from lwfed.params import DTYPES, spec_of
from lwfed.store.blocks import file_chunks
from lwfed.types.tensors import ITEM_BYTES, TensorSpec, layout, unit_of

TENSORS = {
    "b.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "a.bias": torch.tensor([-0.0, float("nan"), float("inf")]),
    "scalar": torch.tensor(3.5),
    "count": torch.tensor(17, dtype=torch.int64),
    "half": torch.ones(3, 1, 2, dtype=torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "wide": torch.tensor([1e300], dtype=torch.float64),
    "ü ber": torch.full((1,), 2.0),
}


def written(tensors: dict[str, torch.Tensor]) -> bytes:
    return b"".join(bytes(chunk) for chunk in file_chunks(tensors))


def test_the_safetensors_library_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(written(TENSORS))
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name


def test_length_and_spans_are_the_files(tmp_path: Path) -> None:
    plan = layout({name: spec_of(tensor) for name, tensor in TENSORS.items()})
    content = written(TENSORS)
    assert len(content) == plan.nbytes and content.startswith(plan.header)
    for name, (start, stop) in plan.spans.items():
        tensor = TENSORS[name]
        assert content[start:stop] == bytes(tensor.reshape(-1).view(torch.uint8).numpy())
        assert start % tensor.element_size() == 0, "aligned"
    covered = sorted(plan.spans.values())
    assert covered[0][0] == len(plan.header) and covered[-1][1] == plan.nbytes
    assert all(a[1] == b[0] for a, b in pairwise(covered)), "no gaps"


def test_files_of_one_type_are_those_that_the_library_writes() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        tensors = {name: torch.ones(3, 2, dtype=dtype) for name in ("b", "a", "c.x")}
        assert written(tensors) == reference(tensors)


def test_the_order_of_names_does_not_matter() -> None:
    assert written(TENSORS) == written(dict(reversed(TENSORS.items())))


def test_a_tensor_without_items_has_a_place() -> None:
    plan = layout({"empty": TensorSpec((0, 4)), "one": TensorSpec((1,))})
    start, stop = plan.spans["empty"]
    assert start == stop and plan.nbytes == len(plan.header) + 4
    assert layout({}).nbytes == len(layout({}).header)


@pytest.mark.parametrize("name", sorted(ITEM_BYTES))
def test_item_sizes_are_those_of_torch(name: str, tmp_path: Path) -> None:
    tensor = torch.zeros(3, dtype=DTYPES[name])
    assert TensorSpec((3,), name).nbytes == tensor.numel() * tensor.element_size()
    path = tmp_path / "x.safetensors"
    path.write_bytes(written({"t": tensor}))
    with safe_open(path, "pt") as file:
        assert file.get_slice("t").get_dtype() == name


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("image.stem.patch_embed.proj.weight", "image.stem"),
        ("image.blocks.3.attn.qkv.weight", "image.blocks.3"),
        ("image.blocks.11.norm1.bias", "image.blocks.11"),
        ("image.norm.weight", "image.norm"),
        ("text.projection.hidden.0.norm.running_mean", "text.projection"),
        ("prediction.hidden.bias", "prediction"),
        ("fusion.query", "fusion"),
        ("image.blocks.3.attn.qkv.weight:m", "image.blocks.3"),
    ],
)
def test_units_of_names(name: str, unit: str) -> None:
    assert unit_of(name) == unit
