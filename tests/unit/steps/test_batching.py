"""Laws of cutting batches into parts."""

from __future__ import annotations

import pytest
import torch

from lwfed.data.batches import Batch
from lwfed.steps.batching import part, tensors_of, to_device


def batch_of(size: int) -> Batch:
    return Batch(
        inputs={
            "image": torch.arange(size * 6, dtype=torch.float32).reshape(size, 3, 2, 1),
            "text": {"ids": torch.arange(size * 4).reshape(size, 4), "mask": torch.ones(size, 4, dtype=torch.bool)},
        },
        labels=torch.arange(size),
        ids=tuple(f"example-{n}" for n in range(size)),
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_parts_make_up_the_batch_and_are_nearly_equal(count: int) -> None:
    batch = batch_of(8)
    parts = [part(batch, index, count) for index in range(count)]
    assert sum((p.ids for p in parts), ()) == batch.ids
    for n, tensor in enumerate(tensors_of(batch)):
        assert torch.equal(torch.cat([tensors_of(p)[n] for p in parts]), tensor)
    sizes = [len(p.ids) for p in parts]
    assert max(sizes) - min(sizes) <= 1


def test_parts_are_views_and_the_whole_is_itself() -> None:
    batch = batch_of(8)
    storage = batch.inputs["image"].untyped_storage().data_ptr()
    assert part(batch, 1, 2).inputs["image"].untyped_storage().data_ptr() == storage
    assert part(batch, 0, 1) is batch
    assert to_device(batch, torch.device("cpu")).inputs["image"] is batch.inputs["image"]


def test_all_tensors_are_found_and_labels_may_be_missing() -> None:
    batch = batch_of(3)
    assert len(tensors_of(batch)) == 4
    unlabelled = Batch(inputs=batch.inputs, labels=None, ids=batch.ids)
    assert len(tensors_of(unlabelled)) == 3 and part(unlabelled, 0, 2).labels is None
    assert part(unlabelled, 0, 2).ids == ("example-0",)
