from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer

from lwfed.data.batches import caption_batches
from lwfed.data.inputs import InputSettings, settings_for
from lwfed.data.tokens import open_tokenizer, token_counts, tokenize, unknown_share
from lwfed.types.errors import DataError, SpecError, UnreachableError

BYTES = InputSettings(modalities=("text",), max_tokens=12, vocab_size=259)


def write_tokenizer(folder: Path) -> None:
    """Writes a word-level BERT tokenizer of nine tokens."""
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "square"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))


def test_bytes_need_no_file_and_pad_to_the_longest() -> None:
    made = tokenize(["a é", "red circle and more"], settings=BYTES)
    assert (made["ids"].dtype, made["mask"].dtype) == (torch.int64, torch.bool)
    assert made["ids"].shape == made["mask"].shape == (2, 12)
    assert made["mask"].sum(dim=1).tolist() == [5, 12]
    assert made["ids"][0, :5].tolist() == ByT5Tokenizer()("a é")["input_ids"]
    assert made["ids"][1, -1] == 1  # the end is kept when a caption is cut
    assert made["ids"].max() < 259
    assert not made["ids"][~made["mask"]].any()


def test_a_text_is_counted_as_it_is_truncated_or_up_to_another_length() -> None:
    texts = ["short", "a caption too long", "12345678901"]
    assert token_counts(texts, settings=BYTES) == [6, 12, 12]
    assert token_counts(texts, settings=BYTES, longest=13) == [6, 13, 12]


def test_a_tokenizer_of_a_folder_or_beside_weights(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"")
    for name in (tmp_path / "bert", tmp_path / "bert" / "model.safetensors"):
        settings = settings_for({"text": {"tokenizer": str(name), "max_tokens": 6, "vocab_size": 30_522}})
        made = tokenize(["a red circle", "a square"], settings=settings)
        assert made["ids"].tolist() == [[2, 5, 6, 7, 3], [2, 5, 8, 3, 0]]
        assert made["mask"].tolist() == [[True] * 5, [True] * 4 + [False]]


def test_caption_batches_hold_every_text_once_and_texts_of_like_length_together() -> None:
    texts = ["0", "1", "2 and a half", "3", "4 and"]
    batches = list(caption_batches(texts, settings=BYTES, batch_size=2))
    assert [chosen for chosen, _ in batches] == [[0, 1], [3, 4], [2]]
    assert [tokens["ids"][:, 0].tolist() for _, tokens in batches] == [[51, 52], [54, 55], [53]]
    assert [tokens["ids"].shape[1] for _, tokens in batches] == [2, 6, 12]
    assert list(caption_batches([], settings=BYTES, batch_size=2)) == []


def test_more_tokens_than_the_encoder_knows_is_refused() -> None:
    with pytest.raises(SpecError, match=r"259 tokens.* text encoder .*64 -> set .*vocab_size to 259 or more"):
        tokenize(["a"], settings=InputSettings(modalities=("text",), vocab_size=64))


def test_ids_beyond_the_encoder_are_refused_whatever_the_captions(tmp_path: Path) -> None:
    vocab = {"[PAD]": 0, "[UNK]": 1, "a": 2, "rare": 70}
    words = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    settings = InputSettings(modalities=("text",), tokenizer=str(tmp_path), vocab_size=70)
    with pytest.raises(SpecError, match="vocab_size to 71"):
        tokenize(["a"], settings=settings)
    assert tokenize(["a rare"], settings=replace(settings, vocab_size=71))["ids"].max() == 70


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ("BertTokenizer", []),
        ("T5Tokenizer", ["vocab.txt"]),
        ("GPT2Tokenizer", ["vocab.json"]),
        ("GPT2Tokenizer", ["merges.txt"]),
        (None, ["added_tokens.json", "special_tokens_map.json"]),
    ],
)
def test_settings_without_a_vocabulary_are_no_tokenizer(tmp_path: Path, config: str | None, files: list[str]) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": config}))
    for name in files:
        (tmp_path / name).write_text("{}" if name.endswith("json") else "[UNK]\n")
    with pytest.raises(DataError, match=r"tokenizer .* -> ") as caught:
        open_tokenizer(str(tmp_path))
    assert caught.value.exit_code == 11


def test_a_byte_tokenizer_needs_no_vocabulary(tmp_path: Path) -> None:
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path)
    assert open_tokenizer(str(tmp_path))("a é")["input_ids"] == ByT5Tokenizer()("a é")["input_ids"]


def test_the_share_of_unknown_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "bert")
    settings = InputSettings(modalities=("text",), tokenizer=str(tmp_path / "bert"), vocab_size=9)
    assert unknown_share(["a red circle", "blue sky above it"], settings=settings) == pytest.approx(4 / 7)
    assert unknown_share(["blue", "sky"], settings=settings) == 1
    assert unknown_share(["", "  "], settings=settings) == unknown_share(["é"], settings=BYTES) == 0


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer .* -> .*model.encoders.text.tokenizer"):
        open_tokenizer(str(tmp_path))
    with pytest.raises(DataError, match=r"there is no folder .*nowhere for the tokenizer -> fix"):
        open_tokenizer(str(tmp_path / "nowhere"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot be loaded: .* -> name a local folder") as caught:
        open_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"version": "1.0"}', "[" * 100_000, "\ud83d"])
def test_a_damaged_tokenizer_is_named_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(DataError, match=rf"the tokenizer {tmp_path} cannot be loaded: .* -> name") as caught:
        open_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_hub_that_is_not_there_is_not_waited_for() -> None:
    begin = time.monotonic()
    with pytest.raises(UnreachableError, match=r"is not on this machine, and the hub does not answer .* `bytes`"):
        open_tokenizer("nobody-at-all/no-such-tokenizer-here")
    assert time.monotonic() - begin < 30


def test_settings_join_what_the_encoders_want() -> None:
    settings = settings_for(
        {
            "text": {"tokenizer": None, "max_tokens": 64},
            "image": {"image_size": (32, 32)},
            "audio": {"num_mel_bins": 32, "max_length": 72},
        }
    )
    assert settings == InputSettings(
        modalities=("audio", "image", "text"), image_size=32, max_tokens=64, num_mel_bins=32, frames=72
    )
    with pytest.raises(ValueError, match=r"image encoder .*`colour`"):
        settings_for({"image": {"colour": 1}})
    with pytest.raises(ValueError, match="are not square"):
        settings_for({"image": {"image_size": (32, 64)}})
