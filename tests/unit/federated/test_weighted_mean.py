"""Laws of the mean over clients, tensor by tensor."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from lwfed.federated.aggregators.weighted_mean import WeightedMean
from lwfed.federated.exchange import check_update
from lwfed.types.errors import CheckpointError
from lwfed.types.tensors import TensorSpec
from tests.aggregating import mean_of


def parts(count: int, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {f"client-{n:03d}": (torch.randn(50, generator=generator) * 10**n).to(dtype) for n in range(count)}


def test_it_is_the_weighted_mean_rounded_once() -> None:
    tensors, weights = parts(5), {f"client-{n:03d}": 3 * n + 1 for n in range(5)}
    total = np.zeros(50)
    for client, tensor in tensors.items():
        total += weights[client] * tensor.numpy().astype(np.float64)
    expected = (total / sum(weights.values())).astype(np.float32)
    assert np.array_equal(mean_of(tensors, weights).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_type_is_kept(dtype: torch.dtype) -> None:
    tensors = parts(2, dtype=dtype)
    mean = mean_of(tensors, dict.fromkeys(tensors, 1))
    assert mean.dtype == dtype and mean.shape == (50,)


def test_the_order_of_arrival_changes_no_bit() -> None:
    """Values whose sum in float64 does depend on the order in which they are added."""
    tensors = {"a": torch.tensor([1e20, 1.0]), "b": torch.tensor([1.0, 1e20]), "c": torch.tensor([-1e20, -1e20])}
    assert (1e20 + 1.0) - 1e20 != (1e20 - 1e20) + 1.0
    weights = dict.fromkeys(tensors, 1)
    means = [mean_of(dict(order), weights) for order in permutations(tensors.items())]
    assert len(means) == 6 and all(torch.equal(mean, means[0]) for mean in means)


def test_the_mean_lies_between_the_clients_and_of_equals_is_their_value() -> None:
    tensors = parts(4)
    stacked = torch.stack(list(tensors.values()))
    mean = mean_of(tensors, {client: 2 * n + 1 for n, client in enumerate(tensors)})
    assert bool((mean >= stacked.min(0).values).all() and (mean <= stacked.max(0).values).all())
    same = dict.fromkeys(tensors, tensors["client-000"])
    for weights in (dict.fromkeys(tensors, 1), {client: 2 * n + 1 for n, client in enumerate(tensors)}):
        assert torch.equal(mean_of(same, weights), tensors["client-000"])


def test_integers_take_the_maximum_whatever_the_weights() -> None:
    tensors = {"a": torch.tensor([1, 9, -3]), "b": torch.tensor([4, 2, -7])}
    assert mean_of(tensors, {"a": 1, "b": 1000}).tolist() == [4, 9, -3]
    assert mean_of({"a": torch.tensor(7)}, {"a": 3}).tolist() == 7


def test_inputs_are_left_alone() -> None:
    tensors = parts(3) | {"client-009": torch.ones(50)}
    kept = {client: tensor.clone() for client, tensor in tensors.items()}
    mean_of(tensors, dict.fromkeys(tensors, 2)).add_(1)
    assert all(torch.equal(tensors[client], kept[client]) for client in kept)
    counts = {"a": torch.tensor([1]), "b": torch.tensor([2])}
    mean_of(counts, {"a": 1, "b": 1})
    assert counts["a"].tolist() == [1] and counts["b"].tolist() == [2]


def test_a_mean_needs_a_client() -> None:
    with pytest.raises(ValueError, match="no client sent w"):
        WeightedMean().finish(WeightedMean().init("w"), name="w")


def test_weights_of_any_size() -> None:
    tensors = parts(2)
    small = mean_of(tensors, {"client-000": 3, "client-001": 5})
    large = mean_of(tensors, {"client-000": 3 * 2**45, "client-001": 5 * 2**45})
    assert torch.equal(small, large)


@pytest.mark.parametrize(
    ("names", "message"),
    [({"a"}, r"client-007 lacks b \(1 missing, 0 too many\)"), ({"a", "b", "c"}, "has c, which the plan does not name"),
     ({"a", "c"}, r"lacks b \(1 missing, 1 too many\)"), (set(), r"lacks a \(2 missing")],
)  # fmt: skip
def test_an_update_of_other_names_is_refused(names: set[str], message: str) -> None:
    one = TensorSpec(shape=(2,))
    specs = {"a": one, "b": one}
    with pytest.raises(CheckpointError, match=message) as caught:
        check_update("client-007", found=dict.fromkeys(names, one), specs=specs, codec="fp32")
    assert "same lwfed version" in caught.value.remedy
    check_update("client-007", found=specs, specs=specs, codec="fp32")
