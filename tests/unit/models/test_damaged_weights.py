"""Whatever is done to a folder of pretrained weights: it is read, or refused by name before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lwfed.cost.architectures import architecture_of
from lwfed.data.inputs import settings_for
from lwfed.data.tokens import open_tokenizer, tokenize
from lwfed.models.build import initial_tensors, input_settings
from lwfed.models.identity import weights_version
from lwfed.models.inspect import count
from lwfed.models.pretrained import resolved
from lwfed.models.weights import checked_files, inputs_text
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import DataError, LwfedError
from tests.damage import altered, damaged, quiet_libraries
from tests.unit.models import small

TIMES = 12
"""Number of damaged copies of each file."""
FAMILIES = {"image": small.vit, "text": small.distilbert, "audio": small.ast}
FILES = [
    ("image", "config.json"), ("image", "model.safetensors"), ("text", "config.json"), ("text", "model.safetensors"),
    ("text", "tokenizer.json"), ("text", "tokenizer_config.json"), ("text", "model.safetensors.index.json"),
    ("audio", "config.json"), ("audio", "model.safetensors"), ("audio", "preprocessor_config.json"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as timm and transformers save them, with a tokenizer and a feature extractor."""
    import timm
    from timm.models import save_for_hf
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        ASTConfig,
        ASTFeatureExtractor,
        ASTModel,
        DistilBertConfig,
        DistilBertModel,
        PreTrainedTokenizerFast,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **small.VIT)
        text = DistilBertModel(DistilBertConfig(**small.DISTILBERT))
        audio = ASTModel(ASTConfig(**small.AST))
    save_for_hf(vit, root / "image", model_args=small.VIT, safe_serialization=True)
    text.save_pretrained(root / "text")
    audio.save_pretrained(root / "audio")
    ASTFeatureExtractor(num_mel_bins=16, max_length=40).save_pretrained(root / "audio")
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "red": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(root / "text")
    names = dict.fromkeys(load_file(root / "text/model.safetensors"), "part.safetensors")
    (root / "text/part.safetensors").write_bytes((root / "text/model.safetensors").read_bytes())
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (root / "text/model.safetensors.index.json").write_text(json.dumps(index))
    return root


def opened(modality: str, folder: Path, **fields: Any) -> str:
    """Opens weights as `plan` and `prepare` do, then as the first stage does.

    Returns:
        How far that went.
    """
    encoder: EncoderSpec = FAMILIES[modality](weights=str(folder), config={}, **fields)
    others = {name: FAMILIES[name]() for name in ("image", "text") if name != modality}
    try:
        depth = architecture_of(encoder, folder=None, count=count).depth
        inputs_text({modality: encoder})
        version, plain = weights_version(encoder), resolved(encoder)
        settings = settings_for({modality: input_settings(plain)})
        assert len(version) == 64
        if modality == "text":
            assert open_tokenizer(plain.tokenizer) is not None
            ids = tokenize(["a red", "square"], settings=settings)["ids"]
            assert ids.min() >= 0 and ids.max() < (settings.vocab_size or 0)
        model = small.contrastive(**others, **{modality: encoder})
        units = [f"{modality}.stem", f"{modality}.blocks.0"]
        tensors = initial_tensors(
            model, units=units, depth=dict.fromkeys(model.modalities, 1), num_classes=None, seed="0"
        )
        assert depth >= 1 and all(tensor.dtype == torch.float32 for tensor in tensors.values())
    except LwfedError as error:
        assert error.exit_code in (10, 11) and error.remedy and str(error).isprintable(), str(error)
        assert len(str(error)) < 3_000
        return "refused"
    finally:
        open_tokenizer.cache_clear()
    return "read"


def test_undamaged_weights_are_read(folders: Path) -> None:
    assert all(opened(modality, folders / modality) == "read" for modality in FAMILIES)


@pytest.mark.parametrize(("modality", "name"), FILES)
def test_a_damaged_file_of_weights_is_read_or_refused(folders: Path, tmp_path: Path, modality: str, name: str) -> None:
    rng = np.random.default_rng(FILES.index((modality, name)))
    folder = tmp_path / modality
    shutil.copytree(folders / modality, folder)
    if "index" in name:
        (folder / "model.safetensors").unlink()
    with quiet_libraries():
        for number in range(TIMES):
            mutate(folder / name, folders / modality / name, rng, by_value=bool(number % 2))
            opened(modality, folder)


def mutate(path: Path, whole: Path, rng: np.random.Generator, *, by_value: bool) -> None:
    """Writes a damaged copy of a file: other bytes, or other values or tensors."""
    if not by_value:
        path.write_bytes(damaged(whole.read_bytes(), rng))
    elif path.suffix == ".json":
        path.write_text(json.dumps(altered(altered(json.loads(whole.read_text()), rng), rng)))
    else:
        tensors = load_file(whole)
        name = sorted(tensors)[int(rng.integers(len(tensors)))]
        match rng.integers(5):
            case 0:
                del tensors[name]
            case 1:
                tensors[name] = tensors[name][..., :-1].contiguous()
            case 2:
                tensors[name] = torch.full_like(tensors[name], float(rng.choice([float("nan"), float("inf")])))
            case 3:
                tensors[name] = tensors[name].to(rng.choice([torch.float64, torch.bfloat16, torch.int8, torch.bool]))
            case _:
                tensors[f"{name}.weight"] = tensors.pop(name)
        save_file(tensors, path)


NAN, LONG = float("nan"), "a" * 5_000
FOUND: list[tuple[str, str, dict[str, Any]]] = [
    ("text", "model.safetensors.index.json", {"weight_map": {"a": 1, "b": "part.safetensors"}}),
    ("text", "model.safetensors.index.json", {"weight_map": 3}),
    ("text", "model.safetensors.index.json", {"weight_map": {"a": LONG}}),
    ("text", "model.safetensors.index.json", {"weight_map": None}),
    ("text", "model.safetensors.index.json", {"weight_map": ["part.safetensors"]}),
    ("text", "config.json", {"n_layers": -1}),
    ("text", "config.json", {"n_layers": 10**9}),
    ("text", "config.json", {"model_type": LONG}),
    ("text", "config.json", {"dim": LONG}),
    ("audio", "config.json", {"num_hidden_layers": 10**400}),
    ("audio", "preprocessor_config.json", {"std": NAN}),
    ("audio", "preprocessor_config.json", {"mean": {}}),
    ("audio", "preprocessor_config.json", {"mean": LONG}),
    ("audio", "preprocessor_config.json", {"mean": 10**400}),
    ("audio", "preprocessor_config.json", {"mean": [None], "std": 1.0}),
    ("audio", "config.json", {"num_mel_bins": 258}),
    ("audio", "config.json", {"hidden_dropout_prob": 2}),
    ("image", "config.json", {"model_args": [1]}),
    ("image", "config.json", {"model_args": {**small.VIT, "in_chans": 1}}),
    ("image", "config.json", {"architecture": LONG}),
    ("image", "config.json", {"model_args": 3}),
    ("image", "config.json", {"model_args": []}),
    ("image", "config.json", {"pretrained_cfg": []}),
    ("image", "config.json", {"pretrained_cfg": [1]}),
    ("image", "config.json", {"pretrained_cfg": {"input_size": 32}}),
    ("image", "config.json", {"pretrained_cfg": {"mean": [0.5, "x", 0.5], "std": [0.5] * 3}}),
    ("text", "tokenizer.json", {"model": {"type": "WordLevel", "vocab": {"a": 2}, "unk_token": "missing"}}),
    ("text", "tokenizer.json", {"model": {"type": "WordLevel", "vocab": {"a": 2, "x": 70}, "unk_token": "x"}}),
]


@pytest.mark.parametrize(("modality", "name", "changes"), FOUND)
def test_what_was_found_is_refused(
    folders: Path, tmp_path: Path, modality: str, name: str, changes: dict[str, Any]
) -> None:
    folder = tmp_path / modality
    shutil.copytree(folders / modality, folder)
    if "index" in name:
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **changes}))
    assert opened(modality, folder) == "refused"


@pytest.mark.parametrize("modality", FAMILIES)
@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.bool, torch.int64, "nan", "inf"])
def test_quantised_weights_and_those_that_are_not_finite_are_refused(
    folders: Path, tmp_path: Path, modality: str, kind: torch.dtype | str
) -> None:
    folder = tmp_path / modality
    shutil.copytree(folders / modality, folder)
    tensors = load_file(folder / "model.safetensors")
    last = max(name for name in tensors if name.endswith("weight") and tensors[name].ndim == 2)
    tensors[last] = tensors[last].to(kind) if isinstance(kind, torch.dtype) else tensors[last].fill_(float(kind))
    save_file(tensors, folder / "model.safetensors")
    assert opened(modality, folder) == "refused", "even if its block is of a later stage"
    if isinstance(kind, torch.dtype):
        with pytest.raises(DataError, match="type"):
            checked_files(str(folder))  # as `lwfed plan` does, from the file's header


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_float_types_are_read(folders: Path, tmp_path: Path, kind: torch.dtype) -> None:
    folder = tmp_path / "text"
    shutil.copytree(folders / "text", folder)
    tensors = {name: tensor.to(kind) for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["embeddings.position_ids"] = torch.arange(4)[None]
    save_file(tensors, folder / "model.safetensors")
    assert opened("text", folder) == "read"
