"""Laws of InfoNCE."""

from __future__ import annotations

import math

import torch

from lwfed.objectives.contrastive import contrastive_loss, info_nce


def _pair(rows: int = 6, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=generator), torch.randn(rows, 4, generator=generator)


def test_it_is_the_formula() -> None:
    a, b = _pair()
    unit_a, unit_b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    scores = (unit_a @ unit_b.T / 0.05).double()
    rows = -(scores.diagonal() - scores.logsumexp(1)).mean()
    columns = -(scores.diagonal() - scores.logsumexp(0)).mean()
    torch.testing.assert_close(info_nce(a, b, temperature=0.05).double(), (rows + columns) / 2, rtol=1e-5, atol=1e-6)


def test_symmetric_scale_free_and_order_free() -> None:
    a, b = _pair()
    loss = info_nce(a, b, temperature=0.1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(info_nce(b, a, temperature=0.1), loss)
    torch.testing.assert_close(info_nce(7 * a, 0.1 * b, temperature=0.1), loss)
    torch.testing.assert_close(info_nce(a[order], b[order], temperature=0.1), loss)


def test_equal_embeddings_give_chance_and_right_ones_almost_nothing() -> None:
    a, _ = _pair(8)
    constant = torch.ones(8, 4)
    torch.testing.assert_close(info_nce(constant, constant, temperature=0.05), torch.tensor(math.log(8)))
    assert info_nce(torch.eye(8), torch.eye(8), temperature=0.05) < 1e-6
    assert info_nce(a, a.flip(0), temperature=0.05) > info_nce(a, a, temperature=0.05)


def test_bf16_is_computed_in_fp32() -> None:
    a, b = (x.bfloat16() for x in _pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(a, b, temperature=0.05)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, info_nce(a.float(), b.float(), temperature=0.05))


def test_several_modalities_are_the_mean_over_pairs() -> None:
    (a, b), (c, _) = _pair(), _pair(seed=1)
    mean = sum(info_nce(x, y, temperature=0.1) for x, y in ((a, b), (a, c), (b, c))) / 3
    torch.testing.assert_close(contrastive_loss({"c": c, "a": a, "b": b}, temperature=0.1), mean)
    assert torch.equal(contrastive_loss({"b": b, "a": a}, temperature=0.1), info_nce(a, b, temperature=0.1))
