"""Laws of the alignment with received heads."""

from __future__ import annotations

import torch

from lwfed.models.heads import ProjectionHead, frozen_copy
from lwfed.objectives.alignment import alignment_loss
from lwfed.spec.model import ProjectionSpec


def test_by_hand() -> None:
    local = {"image": torch.tensor([[2.0, 0.0], [0.0, 3.0]]), "text": torch.tensor([[1.0, 1.0], [1.0, 0.0]])}
    target = {"image": torch.tensor([[1.0, 0.0], [1.0, 0.0]]), "text": torch.tensor([[5.0, 5.0], [-1.0, 0.0]])}
    torch.testing.assert_close(alignment_loss(local, target), torch.tensor((1 - 1 / 2) + (1 - 0 / 2)))


def test_a_head_that_has_not_changed_is_aligned_and_one_that_has_is_pulled_back() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(6, spec=ProjectionSpec(hidden=8, out=4, layers=3, dropout=0.0)).train()
    received = frozen_copy(head)
    features = torch.randn(5, 6, requires_grad=True)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    projected = {"image": head(features)}
    with torch.no_grad():
        target = {"image": received(features)}
    assert torch.equal(projected["image"], target["image"])
    assert not any(parameter.requires_grad for parameter in received.parameters())
    torch.testing.assert_close(alignment_loss(projected, target), torch.tensor(0.0), atol=1e-6, rtol=0)
    with torch.no_grad():
        head.out.linear.weight.add_(torch.randn(4, 8))
    assert torch.equal(received.out.linear.weight, before["out.linear.weight"]), "the copy shares nothing"
    moved = alignment_loss({"image": head(features)}, target)
    moved.backward()
    assert moved > 0.01 and head.out.linear.weight.grad is not None and features.grad is not None
    with torch.no_grad():
        head.out.linear.weight.sub_(1e-3 * head.out.linear.weight.grad)
        assert alignment_loss({"image": head(features)}, target) < moved


def test_the_received_head_has_no_dropout() -> None:
    torch.manual_seed(0)
    head = frozen_copy(ProjectionHead(6, spec=ProjectionSpec(hidden=8, out=4, layers=2, dropout=0.5)))
    features = torch.randn(5, 6)
    assert torch.equal(head(features), head(features))
