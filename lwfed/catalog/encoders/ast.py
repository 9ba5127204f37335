"""AST (transformers): its settings, formulas and usage; see `lwfed.models.encoders.ast`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lwfed.catalog.blocks import BlockShape, block, linear, norm, patches_cost, transformer
from lwfed.catalog.costs import Architecture, Count, Unit
from lwfed.catalog.encoder import AUDIOSET, EncoderDescription, EncoderSettings, Input, Usage
from lwfed.catalog.stored import HARMLESS, transformers_settings
from lwfed.types.tensors import TensorSpec

MODEL_TYPE = "audio-spectrogram-transformer"
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "patch_size": 16,
    "qkv_bias": True,
    "frequency_stride": 10,
    "time_stride": 10,
    "max_length": 1024,
    "num_mel_bins": 128,
}
"""transformers' defaults (Gong et al. 2021)."""

LIMITS = {"num_mel_bins": (1, 257)}
"""A Fourier transform of 512 samples has 257 frequencies."""

HUB: dict[str, dict[str, Any]] = {
    "MIT/ast-finetuned-audioset-10-10-0.4593": {"model_type": MODEL_TYPE},
    "bookbot/distil-ast-audioset": {"model_type": MODEL_TYPE, "num_hidden_layers": 6},
}
"""Hub ids of pretrained weights -> their config, if it differs from the defaults."""


def inputs(settings: Mapping[str, Any]) -> Input:
    """Returns a spectrogram [F, M]."""
    return Input((settings["max_length"], settings["num_mel_bins"]))


def architecture(encoder: EncoderSettings) -> Architecture | None:
    """Returns the architecture by formulas; see `EncoderDescription.architecture`."""
    c = transformers_settings(encoder, DEFAULTS, model_type=MODEL_TYPE, hub=HUB)
    if c is None or c["hidden_act"] != "gelu" or c["hidden_size"] % c["num_attention_heads"]:
        return None
    d, hidden, patch, bias = c["hidden_size"], c["intermediate_size"], c["patch_size"], c["qkv_bias"]
    rows = (c["num_mel_bins"] - patch) // c["frequency_stride"] + 1
    columns = (c["max_length"] - patch) // c["time_stride"] + 1
    if rows < 1 or columns < 1 or c["num_mel_bins"] > LIMITS["num_mel_bins"][1]:
        return None
    patches = rows * columns
    tensors = {
        **linear("attention.q_proj", d, d, bias=bias),
        **linear("attention.k_proj", d, d, bias=bias),
        **linear("attention.v_proj", d, d, bias=bias),
        **linear("attention.o_proj", d, d),
        **norm("layernorm_before", d),
        **norm("layernorm_after", d),
        **linear("mlp.fc1", d, hidden),
        **linear("mlp.fc2", hidden, d),
    }
    stem = {
        "cls_token": TensorSpec((1, 1, d)),
        "distillation_token": TensorSpec((1, 1, d)),
        "position_embeddings": TensorSpec((1, patches + 2, d)),
        "patch_embeddings.projection.weight": TensorSpec((d, 1, patch, patch)),
        "patch_embeddings.projection.bias": TensorSpec((d,)),
    }
    dropout = c["hidden_dropout_prob"] > 0
    shape = BlockShape(
        width=d,
        feed_forward=hidden,
        heads=c["num_attention_heads"],
        dropouts=2 * int(dropout),
        attention_dropout=c["attention_probs_dropout_prob"] > 0,
    )
    cost = patches_cost(patches, fan_in=patch * patch, width=d, pixels=c["num_mel_bins"] * c["max_length"])
    noise = Count(linear=d if dropout else 0)
    return transformer(
        "ast",
        depth=c["num_hidden_layers"],
        tokens=patches + 2,
        stem=Unit(stem, replace(cost, saved_fp32=noise)),
        block_unit=block(shape, tensors=tensors),
        width=d,
        final_norm=True,
    )


DESCRIPTION = EncoderDescription(
    modality="audio",
    final_norm=True,
    feature_token=True,
    inputs=inputs,
    normalise=AUDIOSET,
    architecture=architecture,
    hub=HUB,
    types=DEFAULTS | HARMLESS | {"patch_size": (16,)},
    limits=LIMITS,
    usage=Usage(
        what="transformers ASTModel and its feature extractor",
        how="`AutoModel`, `AutoFeatureExtractor`",
        feature="the first token of its last hidden state",
        needs=("transformers", "soundfile"),
        imports=("import numpy", "import soundfile", "from transformers import AutoFeatureExtractor, AutoModel"),
        code="""\
ast = AutoModel.from_pretrained(here / "audio").eval().to(device)
extractor = AutoFeatureExtractor.from_pretrained(here / "audio")
audio_head = projection("audio", %(width)d)


def encode_audios(paths):  # 16 kHz; several channels are averaged
    sounds = [soundfile.read(path, dtype="float32", always_2d=True) for path in paths]
    rows = [extractor(samples.mean(1), sampling_rate=rate)["input_values"][0] for samples, rate in sounds]
    return audio_head(ast(torch.from_numpy(numpy.stack(rows)).to(device)).last_hidden_state[:, 0])
""",
    ),
)
