"""The learnable temperature: its start, its gradient, and the least value that training can reach."""

from __future__ import annotations

import math

import pytest
import torch

from lwfed.models.heads import Temperature
from lwfed.models.initial import initial_unit
from lwfed.objectives.contrastive import contrastive_loss


def made(value: float) -> Temperature:
    temperature = Temperature(0.07)
    with torch.no_grad():
        temperature.log.fill_(math.log(value))
    return temperature


def test_it_starts_from_the_spec_whatever_the_seed() -> None:
    with torch.device("meta"):
        unit = Temperature(0.07)
    for seed in ("00", "11"):
        tensors = initial_unit(unit, prefix="temperature", seed=seed, std=None)
        assert tensors.keys() == {"temperature.log"} and tensors["temperature.log"].shape == ()
        torch.testing.assert_close(tensors["temperature.log"].exp(), torch.tensor(0.07))


def test_its_gradient_is_the_loss_s_slope() -> None:
    generator = torch.Generator().manual_seed(0)
    pair = {m: torch.randn(6, 4, generator=generator, dtype=torch.double) for m in ("image", "text")}
    temperature = made(0.3)
    contrastive_loss(pair, temperature=temperature()).backward()
    around = [float(contrastive_loss(pair, temperature=0.3 * math.exp(step))) for step in (-0.01, 0.01)]
    assert temperature.log.grad is not None
    assert float(temperature.log.grad) == pytest.approx((around[1] - around[0]) / 0.02, rel=1e-3)


def test_a_step_too_far_is_taken_back_and_the_next_can_rise() -> None:
    temperature = made(0.002)
    assert temperature.eval()().item() == pytest.approx(0.01)
    assert temperature.log.item() == pytest.approx(math.log(0.002)), "evaluation changes nothing"
    value = temperature.train()()
    assert value.item() == pytest.approx(0.01) and temperature.log.item() == pytest.approx(math.log(0.01))
    value.backward()
    assert temperature.log.grad is not None and float(temperature.log.grad) == pytest.approx(0.01)
