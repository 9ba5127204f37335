"""Laws of the effective movement: computed by hand, and equal to its definition."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lwfed.federated.movement import distance, effective_movement


def movement_of(models: list[Tensor]) -> float:
    """The effective movement of a way through models, as the server computes it."""
    return effective_movement(distance(models[-1], models[0]), [distance(b, a) for a, b in pairwise(models)])


def by_definition(models: list[Tensor]) -> float:
    """From all updates at once: the sum of |sum of a scalar's updates|, by the sum of all |update|."""
    updates = torch.stack([b.double() - a.double() for a, b in pairwise(models)])
    return float(updates.sum(0).abs().sum() / updates.abs().sum())


def test_by_hand() -> None:
    """Scalars that move by (1, 1, 1), (2, -2, 2) and (-1, 3, -2): |3| + |2| + |0| of 3 + 6 + 6."""
    updates = torch.tensor([[1.0, 2, -1], [1, -2, 3], [1, 2, -2]])
    models = [torch.tensor([5.0, -3, 0]) + updates[:n].sum(0) for n in range(4)]
    assert movement_of(models) == 5 / 15


def test_one_direction_is_one_and_an_oscillation_nothing() -> None:
    step = torch.tensor([[0.5, -2.0], [0.25, 8.0]])
    assert movement_of([n * step for n in range(6)]) == 1
    assert movement_of([(n % 2) * step for n in range(5)]) == 0, "two steps forth, two back"
    assert movement_of([(n % 2) * step for n in range(6)]) == 1 / 5


def test_nothing_moves() -> None:
    assert movement_of([torch.ones(3)] * 4) == 0


@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_definition_within_its_bounds(rounds: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rounds)
    models = [torch.randn(7, 11, generator=generator).to(dtype) for _ in range(rounds + 1)]
    found = movement_of(models)
    assert 0 <= found <= 1 and math.isclose(found, by_definition(models), rel_tol=1e-12)


def test_a_random_walk_moves_by_one_over_the_root_of_its_rounds() -> None:
    steps = torch.randn(6, 200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    models = [steps[:n].sum(0) for n in range(7)]
    assert math.isclose(movement_of(models), 6**-0.5, rel_tol=1e-2)
