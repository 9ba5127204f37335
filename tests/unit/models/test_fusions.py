"""The fusions: their formulas by hand, and what the ledger says of their memory and FLOPs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lwfed.catalog import names
from lwfed.catalog.fusion import fusion_kind
from lwfed.models.inspect import SavedBytes
from lwfed.models.protocol import Fusion

TWO, THREE = ("image", "text"), ("audio", "image", "text")


def built(name: str, modalities: tuple[str, ...], *, width: int) -> Fusion:
    fusion: Fusion = import_module(f"lwfed.models.fusions.{name}").build(modalities, width=width)
    return fusion


def projections(modalities: tuple[str, ...], *, width: int, rows: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {m: torch.randn(rows, width, generator=generator, requires_grad=True) for m in reversed(modalities)}


@torch.no_grad()
def fill(fusion: Fusion, **values: Any) -> None:
    """Sets parameters by their names, with `_` for dots; all others are zero."""
    for name, parameter in fusion.named_parameters():
        parameter.copy_(torch.tensor(values.get(name.replace(".", "_"), 0.0)))


def test_concat_sum_by_hand() -> None:
    fused = built("concat_sum", TWO, width=2)({"text": torch.tensor([[3.0, 4.0]]), "image": torch.tensor([[1.0, 2.0]])})
    assert fused.tolist() == [[1, 2, 3, 4, 4, 6]]


def test_concat_attention_by_hand() -> None:
    """Scores of 0 and ln 3 weight the modalities with 1/4 and 3/4; the image is doubled, 4 is added to the text."""
    fusion = built("concat_attention", TWO, width=2)
    fill(
        fusion,
        score_bias=[0.0, torch.tensor(3.0).log().item()],
        value_image_weight=[[2.0, 0.0], [0.0, 2.0]],
        value_text_weight=[[1.0, 0.0], [0.0, 1.0]],
        value_text_bias=[4.0, 4.0],
    )
    fused = fusion({"image": torch.tensor([[2.0, 4.0]]), "text": torch.tensor([[0.0, 8.0]])})
    torch.testing.assert_close(fused, torch.tensor([[2.0, 4.0, 0.0, 8.0, 4 / 4 + 4 * 3 / 4, 8 / 4 + 12 * 3 / 4]]))


def test_its_weights_depend_on_all_projections_and_sum_to_one() -> None:
    fusion = built("concat_attention", THREE, width=4)
    fill(fusion, **{f"value_{m}_bias": [1.0] * 4 for m in THREE})
    torch.nn.init.normal_(fusion.get_parameter("score.weight"), generator=torch.Generator().manual_seed(0))
    fused = fusion(projections(THREE, width=4))
    torch.testing.assert_close(fused[:, 12:], torch.ones(6, 4))


def test_concat_coattention_by_hand() -> None:
    """Keys of (tanh 1, 0) and (0, tanh 1): the map's first row favours the text's second item by exp(tanh(1)^2)."""
    fusion = built("concat_coattention", TWO, width=2)
    fill(fusion, key_image_bias=[1.0, 0.0], key_text_bias=[0.0, 1.0])
    fused = fusion({"image": torch.tensor([[5.0, 7.0]]), "text": torch.tensor([[1.0, 3.0]])})
    share = float((torch.tanh(torch.tensor(1.0)) ** 2).exp())
    own, other = share / (1 + share), 1 / (1 + share)
    image = [1 * other + 3 * own, (1 + 3) / 2]  # its first item attends to the text's second, its second to both alike
    text = [(5 + 7) / 2, 5 * own + 7 * other]  # and the text's second item to the image's first
    torch.testing.assert_close(fused, torch.tensor([[5.0, 7.0, 1.0, 3.0, *image, *text]]))


def test_co_attention_is_symmetric_in_the_modalities() -> None:
    given = projections(TWO, width=4)
    fusion = built("concat_coattention", TWO, width=4)
    swapped = built("concat_coattention", TWO, width=4)
    layers = fusion.get_submodule("key").state_dict()
    other = {"image": "text", "text": "image"}
    swapped.get_submodule("key").load_state_dict(
        {f"{other[n.split('.')[0]]}.{n.split('.')[1]}": t for n, t in layers.items()}
    )
    a, b = fusion(given), swapped({other[m]: p for m, p in given.items()})
    halves = [torch.cat([part[:, 4:], part[:, :4]], dim=1) for part in b.split(8, dim=1)]
    torch.testing.assert_close(a, torch.cat(halves, dim=1))


def test_three_modalities_attend_to_the_mean_of_the_others() -> None:
    given = projections(THREE, width=4)
    fusion = built("concat_coattention", THREE, width=4)
    fill(fusion)  # equal scores: each item attends to all items of another alike
    fused = fusion(given)
    means = {m: p.mean(1) for m, p in given.items()}
    for i, m in enumerate(THREE):
        others = [means[k] for k in THREE if k != m]
        mine = fused[:, 12 + 4 * i : 16 + 4 * i]
        torch.testing.assert_close(mine, torch.stack(others).mean(0)[:, None].expand(6, 4))


@pytest.mark.parametrize("modalities", [TWO, THREE])
@pytest.mark.parametrize("name", [name for name in names("fusions") if fusion_kind(name).unit is not None])
def test_memory_and_flops_are_the_descriptions(name: str, modalities: tuple[str, ...]) -> None:
    fusion, unit = built(name, modalities, width=8), fusion_kind(name).unit
    assert unit is not None
    cost = unit(modalities, 8).cost
    saved = SavedBytes(list(fusion.parameters()))
    with FlopCounterMode(display=False) as counter, saved.watch():
        fused = fusion(projections(modalities, width=8))
        forward = counter.get_total_flops()
        fused.sum().backward()
    assert forward == 6 * cost.forward.at(0)
    assert counter.get_total_flops() - forward == 6 * cost.backward.at(0)
    assert saved.total == 6 * cost.saved_bytes(0)
