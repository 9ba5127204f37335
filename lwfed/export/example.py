"""Writes an export's README and a Python example that needs only public libraries.

The catalog's descriptions say how each encoder and fusion is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from textwrap import indent
from typing import Any

from lwfed.catalog.encoder import Usage, encoder_family
from lwfed.catalog.fusion import fusion_kind
from lwfed.types.modalities import kind_of

_PLACEHOLDERS = {"audio": "SOUND.wav", "image": "IMAGE", "text": "TEXT", "series": "WINDOW.npy"}
_WORDS = {"audio": "a sound", "image": "an image", "text": "a text", "series": "a window"}
"""Kind of modality -> an argument of the example, and what it is."""

_START = """\
torch.set_grad_enabled(False)
here = Path(__file__).parent
if %(misused)s:
    print(__doc__, file=sys.stderr)
    sys.exit(2)
device = "cuda" if torch.cuda.is_available() else "cpu"


def head(name, *layers):
    model = nn.Sequential(*layers)
    model.load_state_dict(load_file(here / f"heads/{name}.safetensors"))
    return model.eval().to(device)


def projection(name, width):
    return head(
        name,
%(layers)s
    )
"""

_RETRIEVAL = """\
def embed(encode, items, batch_size=%(batch_size)d):
    parts = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    return torch.cat([normalize(encode(part)) for part in parts]).cpu()


captions, folder = map(Path, sys.argv[1:3] or [here / "test/captions.json", here / "test/images"])
coco = json.loads(captions.read_text(encoding="utf-8"))
names = {image["id"]: image["file_name"] for image in coco["images"]}
notes = [(names[n["image_id"]], n["id"], " ".join(n["caption"].split())) for n in coco["annotations"]]
notes = sorted(note for note in notes if note[2])
files = sorted({name for name, _, _ in notes})
images = embed(encode_images, [folder / name for name in files])
texts = embed(encode_texts, [text for _, _, text in notes])
scores = texts @ images.T
own = scores.gather(1, torch.tensor([[files.index(name)] for name, _, _ in notes]))
found = (scores < own).sum(1) == len(files) - 1  # every other image scores lower
print(f"text-to-image Recall@1: {found.double().mean():.6f}")
"""

_CLASS = """\
classes = json.loads((here / "lwfed.json").read_text(encoding="utf-8"))["classes"]
prediction = head(
    "prediction",
%(layers)s
)
projected = [%(calls)s]
%(fuse)sshares = prediction(fused).softmax(1)[0]
best = int(shares.argmax())
print(f"{classes[best]}: {shares[best]:.6f}")
"""

_SIMILARITY = """\
a, b = %(calls)s
print(f"cosine similarity: {(normalize(a) * normalize(b)).sum():.6f}")
"""


def example(info: Mapping[str, Any]) -> str:
    """Returns example.py, which computes text-to-image Recall@1 over captioned images, or a class or a similarity.

    Args:
        info: The contents of lwfed.json.

    Returns:
        Python code that imports torch, safetensors and the encoders' libraries, but not lwfed. With another number of
        arguments than it takes it prints its usage and exits with 2.
    """
    modalities, heads = info["modalities"], info["heads"]
    supervised = info["objective"]["kind"] == "supervised"
    retrieval = retrieves(info)
    used = ["image", "text"] if retrieval else modalities if supervised else modalities[:2]
    kinds = {m: kind_of(m) for m in used}
    given = " and ".join(_WORDS[kind] + (f" of the {m}" if kind == "series" else "") for m, kind in kinds.items())
    usage = " ".join(_PLACEHOLDERS[kind] for kind in kinds.values())
    misused = f"len(sys.argv) != {1 + len(used)}"
    calls = ", ".join(f"encode_{m}s([sys.argv[{i}]])" for i, m in enumerate(used, start=1))
    if retrieval:
        title, usage = "Text-to-image Recall@1 over captioned images", "[CAPTIONS.json IMAGES_FOLDER]"
        misused = f'{misused} and (len(sys.argv) > 1 or not (here / "test").is_dir())'
        last = _RETRIEVAL % {"batch_size": info["batch_size"]}
    elif supervised:
        fuse = fusion_kind(info["objective"]["fusion"]).usage
        layers = _prediction(**heads["prediction"])
        title, last = f"Class of {given}", _CLASS % {"layers": layers, "calls": calls, "fuse": fuse}
    else:
        title, last = f"Similarity of {given}", _SIMILARITY % {"calls": calls}
    usages = {m: encoder_family(info["families"][m]).usage for m in used}
    parts = [
        f'"""{title}. Usage: python example.py {usage}"""\n',
        _imports(usages.values(), json=retrieval or supervised, normalize=not supervised),
        _START % {"misused": misused, "layers": _projection(**heads[used[0]])},
        *(f"\n{setup}" for setup in dict.fromkeys(usage.setup for usage in usages.values()) if setup),
        *(f"\n{usage.code % {'width': heads[m]['widths'][0], 'modality': m}}" for m, usage in usages.items()),
        f"\n{last}",
    ]
    return "\n".join(parts)


def retrieves(info: Mapping[str, Any]) -> bool:
    """Whether the example computes Recall@1, since the model embeds images and texts."""
    return info["objective"]["kind"] == "contrastive" and {"image", "text"} <= set(info["modalities"])


def readme(info: Mapping[str, Any], *, code: str, with_test_data: bool) -> str:
    """Returns README.md.

    Args:
        info: The contents of lwfed.json.
        code: The example.
        with_test_data: Whether the export includes the test split.
    """
    supervised = info["objective"]["kind"] == "supervised"
    usages = {m: encoder_family(family).usage for m, family in info["families"].items()}
    features = "; ".join(f"`{m}/`: {usage.feature}" for m, usage in usages.items())
    if supervised:
        what = fusion_kind(info["objective"]["fusion"]).what
        after = f"the projections, in the order of the modalities' names, {what} for the prediction head."
    else:
        after = "embeddings are L2-normalised and compared by their dot product."
    lines = [
        f"# {info['name']}: stage {info['stage']} of {info['num_stages']}",
        "",
        f"Trained by lwfed in run `{info['run_id']}`; objective: {info['objective']['kind']}; blocks present: "
        + ", ".join(f"{m} {count}" for m, count in info["blocks"].items())
        + f".\nCheckpoint: `{info['digest']}`.",
        "",
        "| Path | Contents | How to load it |",
        "|---|---|---|",
        *(f"| `{m}/` | {usage.what} | {usage.how} |" for m, usage in usages.items()),
        "| `heads/` | the heads, one file each | `nn.Sequential(...).load_state_dict`, see the example |",
        "| `lwfed.json` | the model's origin, inputs, widths and metrics | JSON |",
        "",
        f"The encoders' features are: {features}. Their projection heads follow; {after}",
        "",
    ]
    if info["metrics"]:
        lines += ["| Metric | Reported |", "|---|---|"]
        lines += [*(f"| `{name}` | {value:.6f} |" for name, value in sorted(info["metrics"].items())), ""]
    needed = sorted({"torch", "safetensors", *(name for usage in usages.values() for name in usage.needs)})
    lines += [f"`example.py` needs {', '.join(needed)}, but not lwfed:", "", "```python", code.rstrip(), "```", ""]
    if retrieves(info):
        reported = "prints the reported `test/t2i/R@1`."
        lines += [
            "`python example.py CAPTIONS.json IMAGES_FOLDER` reads captions in COCO's format, such as "
            "`annotations/captions_val2017.json`, and the folder of their images. "
            + (f"By default it reads `test/` and {reported}" if with_test_data else f"On the test data it {reported}"),
            "",
        ]
    return "\n".join(lines)


def _imports(usages: Iterable[Usage], *, json: bool, normalize: bool) -> str:
    standard = [*(["import json"] if json else []), "import sys", "from pathlib import Path"]
    others = {"import torch", "from safetensors.torch import load_file", "from torch import nn"}
    others |= {line for usage in usages for line in usage.imports}
    if normalize:
        others.add("from torch.nn.functional import normalize")
    ordered = sorted(_merged(others) - {*standard}, key=lambda line: (line.startswith("from"), line.lower()))
    return "\n".join([*standard, "", *ordered]) + "\n"


def _merged(lines: Iterable[str]) -> set[str]:
    """Joins lines that import from the same module."""
    names: dict[str, set[str]] = {}
    for line in lines:
        module, _, wanted = line.partition(" import ")  # `import torch` is one module and imports from none
        names.setdefault(module, set()).update(wanted.split(", ") if wanted else ())
    return {f"{module} import {', '.join(sorted(found))}" if found else module for module, found in names.items()}


def _projection(*, widths: Sequence[int], dropout: float) -> str:
    """Returns a projection head's layers; the input's width is an argument, since modalities differ only in it."""
    inputs = ["width", *(str(width) for width in widths[1:])]
    lines = [
        f"nn.Linear({a}, {b}, bias=False), nn.Dropout({dropout:g}), nn.BatchNorm1d({b}), nn.ReLU(),"
        for a, b in pairwise(inputs[:-1])
    ]
    a, b = inputs[-2:]
    lines.append(f"nn.Linear({a}, {b}, bias=False), nn.BatchNorm1d({b}, affine=False),")
    return indent("\n".join(lines), " " * 8)


def _prediction(*, widths: Sequence[int], dropout: float) -> str:
    a, b, c = widths
    return indent(f"nn.Linear({a}, {b}), nn.Dropout({dropout:g}), nn.ReLU(),\nnn.Linear({b}, {c}),", " " * 4)
