"""Laws: the last block for the feature's token alone is the library's own block, in value and in every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lwfed.models.families import family_of
from lwfed.models.feature_row import InverseDeviation, absorbed_attention, of_fused, of_linears, row_attention
from lwfed.models.protocol import Encoder, LastBlock, State
from lwfed.spec.model import EncoderSpec
from tests.unit.models import small

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
NO_BERT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def mobilebert(**config: Any) -> EncoderSpec:
    return small.mobilebert(config={**small.MOBILEBERT, **NO_BERT_DROPOUT, **config})


ENCODERS: dict[str, EncoderSpec] = {
    "vit": small.vit(),
    "vit-no-bias": small.vit(config={**small.VIT, "qkv_bias": False}),
    "vit-layer-scale": small.vit(config={**small.VIT, "init_values": 0.3, "reg_tokens": 2}),
    "vit-head-norm": small.vit(config={**small.VIT, "qk_norm": True}),
    "vit-attention-norm": small.vit(config={**small.VIT, "scale_attn_norm": True, "scale_mlp_norm": True}),
    "vit-parallel": small.vit(arch="vit_small_patch16_18x2_224"),
    "distilbert": small.distilbert(config={**small.DISTILBERT, **NO_DROPOUT}),
    "bert": small.bert(config={**small.BERT, **NO_BERT_DROPOUT}),
    "mobilebert": mobilebert(),
    "mobilebert-bottleneck-attention": mobilebert(use_bottleneck_attention=True, key_query_shared_bottleneck=False),
    "mobilebert-wide": mobilebert(use_bottleneck=False, num_feedforward_networks=1),
    "mobilebert-layer-norm": mobilebert(normalization_type="layer_norm"),
    "ast": small.ast(),
    "ast-no-bias": small.ast(config={**small.AST, "qkv_bias": False}),
}
HOWS: tuple[LastBlock, ...] = ("row", "absorbed")


def built(name: str, *, seed: int = 0) -> Encoder:
    """An encoder in float64 whose biases and norms are no longer 0 and 1; MobileBERT's norms bound nothing."""
    encoder = ENCODERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = family_of(encoder).build(encoder, depth=None).double()
        for parameter in module.parameters():
            nn.init.normal_(parameter, mean=0.02 if encoder.family == "mobilebert" else 0.2, std=0.15)
    return module


def tokens_of(module: Encoder, *, masked: bool, batch: int = 3, length: int = 9) -> State:
    """Tokens of unequal means and deviations."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(batch, length, module.width, generator=generator, dtype=torch.float64)
    tokens = tokens * torch.rand(batch, length, 1, generator=generator) * 3 + torch.randn(
        batch, length, 1, generator=generator
    )
    mask = torch.arange(length)[None] < torch.tensor([[4], [length], [1]])
    return State(tokens.requires_grad_(), mask if masked else None)


def feature_and_gradients(module: Encoder, state: State, how: LastBlock) -> dict[str, Tensor]:
    """Returns the feature of the last two blocks, and the gradients of the tokens and of every parameter."""
    start = len(module.blocks) - 2
    feature = module.feature(state, start=start, how=how)
    probe = torch.randn(feature.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    used = dict(module.blocks[start:].named_parameters())
    used |= {f"norm.{name}": parameter for name, parameter in getattr(module, "norm", nn.Identity()).named_parameters()}
    gradients = torch.autograd.grad((feature * probe).sum(), [state.tokens, *used.values()])
    return {"feature": feature.detach(), **dict(zip(["tokens", *used], gradients, strict=True))}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", ENCODERS)
def test_the_row_is_the_full_block_in_value_and_gradient(name: str, how: LastBlock, training: bool) -> None:
    module = built(name).train(training)
    for masked in (False, True) if "bert" in name else (False,):
        state = tokens_of(module, masked=masked)
        whole, row = feature_and_gradients(module, state, "full"), feature_and_gradients(module, state, how)
        assert whole.keys() == row.keys() and len(whole) > 20
        for what, expected in whole.items():
            assert float((row[what] - expected).abs().max()) < 1e-12, what
            still = expected.abs().max() < 1e-12  # a key's bias moves every score alike
            assert not still or what.endswith(("k_lin.bias", "k_proj.bias", "k_norm.bias", "key.bias")), (
                f"no gradient of {what} to compare"
            )


@pytest.mark.parametrize("name", ENCODERS)
def test_the_row_is_computed_alone(name: str) -> None:
    """Nothing is absorbed if each key is normalised; a block of another type is computed in full."""
    module = built(name)
    state = tokens_of(module, masked=False)
    for how in HOWS:
        with FlopCounterMode(display=False) as counter:
            after = module.advance_row(state, index=len(module.blocks) - 1, how=how)
        with FlopCounterMode(display=False) as whole:
            module.advance(state, start=len(module.blocks) - 1, stop=len(module.blocks))
        assert after.tokens.shape[1] == (state.tokens.shape[1] if name == "vit-parallel" else 1)
        ratio = counter.get_total_flops() / whole.get_total_flops()
        assert ratio == 1 if name == "vit-parallel" else ratio < 0.5
        if name == "vit-head-norm" and how == "absorbed":
            row = module.advance_row(state, index=len(module.blocks) - 1, how="row")
            assert torch.equal(after.tokens, row.tokens)


def test_without_a_last_block_of_its_own_the_feature_is_that_of_all_tokens() -> None:
    module = built("vit")
    state = tokens_of(module, masked=False)
    for how in HOWS:
        assert torch.equal(module.feature(state, start=len(module.blocks), how=how), module.pool(state))


def plain_attention(tokens: Tensor, layers: list[nn.Linear], *, heads: int, mask: Tensor, noise: Tensor) -> Tensor:
    """Attention of the first token, written out, with a given noise on the weights."""
    query, key, value = (layer(tokens).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in layers)
    scores = query[:, :, :1] @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1) * noise[:, :, None]
    return (weights @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("how", HOWS)
def test_dropout_on_the_weights_is_that_of_the_noise_drawn(how: str, normalised: bool) -> None:
    """Where weights do not sum up to 1, biases count as often as they do."""
    heads, width, rate = 3, 12, 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(width, width).double() for _ in range(3)]
        norm = nn.LayerNorm(width).double()
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
        tokens = torch.randn(4, 7, width, dtype=torch.float64, requires_grad=True)
        mask = torch.arange(7)[None] < torch.tensor([[7], [3], [5], [1]])
        torch.manual_seed(1)
        noise = nn.functional.dropout(torch.ones(4, heads, 7, dtype=torch.float64), rate)
        seen = norm(tokens) if normalised else tokens
        expected = plain_attention(seen, layers, heads=heads, mask=mask, noise=noise)
        torch.manual_seed(1)
        given: dict[str, Any] = {"projections": of_linears(*layers), "heads": heads, "mask": mask, "dropout": rate}
        if how == "row":
            found = row_attention(seen[:, :1], seen, **given)
        else:
            found = absorbed_attention(seen[:, :1], tokens, **given, norm=norm if normalised else None)
    assert float((noise.mean(-1) - 1).abs().max()) > 0.2
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    parameters = [tokens, *parameters, *(norm.parameters() if normalised else ())]
    probe = torch.arange(found.numel(), dtype=torch.float64).sin().view_as(found)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    for one, other in zip(
        torch.autograd.grad((found * probe).sum(), parameters, retain_graph=True),
        torch.autograd.grad((expected * probe).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


DROPPING = {
    "vit": small.vit(config={**small.VIT, "attn_drop_rate": 0.3, "proj_drop_rate": 0.2, "drop_path_rate": 0.2}),
    "distilbert": small.distilbert(config={**small.DISTILBERT, "dropout": 0.2, "attention_dropout": 0.3}),
    "ast": small.ast(config={**small.AST, "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}),
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", DROPPING)
def test_with_dropout_features_are_spread_as_the_full_block_spreads_them(
    name: str, how: LastBlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means and second moments of many draws, within five standard errors; the dropouts do something."""
    monkeypatch.setitem(ENCODERS, name, DROPPING[name])
    module = built(name)
    draws = 6000
    state = tokens_of(module, masked=name == "distilbert", batch=3)
    many = State(
        state.tokens[:1].expand(draws, -1, -1), None if state.mask is None else state.mask[:1].expand(draws, -1)
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        last = len(module.blocks) - 1
        whole, row = (module.feature(many, start=last, how=each) for each in ("full", how))
        still = module.eval().feature(many, start=last, how=how)
    assert float(whole.std(0).min()) > 0.001 and float(still.std(0).max()) < 1e-12
    for one, other in ((whole, row), ((whole - still).square(), (row - still).square())):
        error = ((one.var(0) + other.var(0)) / draws).sqrt()
        assert float(((one.mean(0) - other.mean(0)) / error).abs().max()) < 5


def test_a_fused_layer_is_three() -> None:
    layer = nn.Linear(6, 18)
    query, key, value = of_fused(layer)
    rows = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    together = torch.cat([nn.functional.linear(rows, *each) for each in (query, key, value)], -1)
    torch.testing.assert_close(together, layer(rows))
    assert of_fused(nn.Linear(6, 18, bias=False)).key.bias is None


def test_the_inverse_deviation_s_gradient() -> None:
    rows = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    rows.requires_grad_()
    found = InverseDeviation.apply(rows, 1e-3)
    torch.testing.assert_close(found, (rows.var(-1, correction=0) + 1e-3).rsqrt())
    assert torch.autograd.gradcheck(lambda x: InverseDeviation.apply(x, 1e-3), [rows])


@pytest.mark.parametrize("name", ["vit", "distilbert", "ast"])
def test_under_autocast_the_row_is_as_near_to_the_truth_as_the_full_block(name: str) -> None:
    module = built(name).eval()
    state = tokens_of(module, masked=name == "distilbert", batch=3, length=40)
    with torch.no_grad():
        exact = module.feature(state, start=len(module.blocks) - 1, how="full")
        module.float()
        single = State(state.tokens.float(), state.mask)
        with torch.autocast("cpu", torch.bfloat16):
            whole, row, absorbed = (
                module.feature(single, start=len(module.blocks) - 1, how=how).double() - exact
                for how in ("full", "row", "absorbed")
            )
    assert float(whole.abs().max()) > 1e-4, "bf16 did something"
    for off in (row, absorbed):
        assert float(off.square().mean().sqrt()) < 1.5 * float(whole.square().mean().sqrt())
