"""Laws of mistakes in a spec: a message names the key, and what to do or what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwfed.spec.load import build_spec, load_spec
from lwfed.types.errors import NotFoundError, SpecError
from tests.tiny import VALUES

MISTAKES = [
    # (override, the key or value that is named, what helps)
    ("training.batch_sise=4", "training.batch_sise", "did you mean `training.batch_size`?"),
    ("trainng.batch_size=4", "trainng", "did you mean `training`?"),
    ("model.encoders.image.famly=vit", "model.encoders.image.famly", "did you mean `model.encoders.image.family`?"),
    ("model.objective.temperatur=1", "model.objective.temperatur", "did you mean `model.objective.temperature`?"),
    ("federation.server.momentun=1", "federation.server.momentun", "did you mean `federation.server.momentum`?"),
    (
        "federation.groups=[{name: weak, clients: [client-000], max_block: 1}]",
        "federation.groups.0.max_block",
        "did you mean `federation.groups.0.max_blocks`?",
    ),
    ("zzz=1", "zzz", "known: name, seed, strategy"),
    ("federation.partition={kind: dirichlet, beta: -1}", "federation.partition.beta", "greater than 0 (got -1)"),
    ("federation.partition.kind=dirichlet", "`alpha`", "for example 0.5"),
    ("federation.partition={kind: iid, alpha: 1}", "`alpha`", "is for a dirichlet partition, not iid"),
    ("federation.partition.kind=by_group", "by_group", "`pattern` or `field`"),
    ("federation.partition={kind: by_group, pattern: a, field: b}", "by_group", "either `pattern` or `field`"),
    ("federation.partition={kind: by_group, pattern: '^x'}", "`pattern`", "'^(?P<group>[a-z]+)_'"),
    ("federation.partition={kind: iid, field: label}", "`field`", "are for a by_group partition"),
    ("federation.fraction_train=0", "federation.fraction_train", "greater than 0 (got 0)"),
    ("federation.min_fit_clients=50", "`min_fit_clients` is 50", "more than the 2 clients"),
    ("federation.min_available_nodes=9", "`min_available_clients` is 9", "more than the 2 clients"),
    ("federation.server.kind=fedprox", "federation.server.kind", "'fedavg', 'fedavgm', 'fedadam' or 'fedyogi'"),
    ("model.encoders.image.blocks_per_stage=x", "`model.encoders.image.blocks_per_stage`", "valid integer"),
    (
        "model.encoders.image.blocks_per_stage=[1,1,1]",
        "model.encoders.image.blocks_per_stage",
        "3 entries for 2 stages",
    ),
    ("model.encoders.text.blocks_per_stage=[0,2]", "model.encoders.text.blocks_per_stage", "at least one block"),
    ("model.encoders.text.blocks_per_stage=[3,-1]", "model.encoders.text.blocks_per_stage", "negative"),
    ("model.encoders.image.arch=null", "`arch`", "for example vit_tiny_patch16_224"),
    ("model.encoders.text.arch=distilbert", "`arch` is not for distilbert", "`config` or `weights`"),
    ("model.encoders.text.family=vit", "model.encoders.text", "needs `arch`"),
    ("model.encoders={text: {family: distilbert}}", "contrastive objective", "needs at least 2"),
    ("model.encoders.sound={family: ast}", "the family ast encodes `audio`", "not `sound`"),
    ("model.objective={learnable_temperature: true, temperature: 0.001}", "`temperature` 0.001", "below 0.01"),
    ("model.objective.learnable_temperature=2", "model.objective.learnable_temperature", "true or false"),
    ("training.learning_rates={temperature: 1}", "names the group `temperature`", "known: image, text"),
    ("model.objective.alignment={}", "model.objective.alignment.weight", "required"),
    ("model.objective.alignment={weight: 0}", "model.objective.alignment.weight", "greater than 0 (got 0)"),
    ("model.objective.alignment={wait: 1}", "model.objective.alignment.wait", "did you mean"),
    ("model.objective={label_smoothing: 0.1}", "model.objective.label_smoothing", ""),
    (
        "model.objective={kind: supervised, label_smoothing: 1}",
        "model.objective.label_smoothing",
        "less than 1 (got 1)",
    ),
    ("model.objective={kind: supervised, class_weights: even}", "model.objective.class_weights", "balanced"),
    ("model.objective={kind: supervised, class_weights: [1, 0]}", "model.objective.class_weights", "greater than 0"),
    ("model.objective={kind: supervised, fusion: concat_sun}", "model.objective.fusion", "did you mean 'concat_sum'?"),
    (
        "model={encoders: {text: {family: distilbert}}, objective: {kind: supervised, fusion: concat_attention}}",
        "the fusion concat_attention",
        "at least 2 encoders",
    ),
    ("model.objective.kind=foo", "model.objective", "'contrastive', 'supervised'"),
    ("training.learning_rates={foo: 1}", "`training.learning_rates` names the group `foo`", "known: image, text"),
    ("training.learning_rates.image=x", "`training.learning_rates.image`", "valid number"),
    ("training.learning_rates.image=[1,2,3]", "training.learning_rates.image", "3 entries for 2 stages"),
    ("training.learning_rates.image=-1", "`training.learning_rates.image`", "greater than 0 (got -1)"),
    ("training.learning_rates.image=0", "`training.learning_rates.image`", "greater than 0 (got 0)"),
    ("training.learning_rates.image=[1e-3,-1]", "`training.learning_rates.image.1`", "greater than 0 (got -1)"),
    ("training.weight_decays.image=-1", "`training.weight_decays.image`", "greater than or equal to 0 (got -1)"),
    ("training.weight_decays={body: 1}", "`training.weight_decays` names the group `body`", "projection, prediction"),
    ("training.batch_size=1", "training.batch_size", "greater than or equal to 2 (got 1)"),
    ("training.batch_size=abc", "training.batch_size", "valid integer"),
    ("training.gradient_accumulation=5", "`training.batch_size` 8", "BatchNorm needs two"),
    ("training=3", "`training`", "mapping of keys"),
    ("stages.rounds=[]", "stages.rounds", "at least 1 item"),
    ("stages.rounds=[0,0]", "`stages.rounds`", "nothing would be trained"),
    ("stages.rounds=[-1,2]", "`stages.rounds`", "negative number"),
    ("strategy=foo", "strategy", "'layerwise', 'window', 'progressive' or 'end_to_end' (got 'foo')"),
    ("seed=-1", "`seed`", "greater than or equal to 0"),
    ("name=a b", "`name`", "pattern"),
    ("data.source=cocco", "`data.source`", "did you mean 'coco'? (got 'cocco')"),
    ("model.encoders.text.family=distillbert", "model.encoders.text.family", "did you mean 'distilbert'?"),
    ("launch.kind=slurm", "launch.kind", "'in_process', 'kubernetes' or 'subprocess' (got 'slurm')"),
    ("data.shapes.trian=5", "data.shapes.trian", "did you mean `data.shapes.train`?"),
    ("data.shapes.train=1", "data.shapes.train", "greater than or equal to 4 (got 1)"),
    ("data.test_fracton=0.1", "data.test_fracton", "did you mean `data.test_fraction`?"),
    ("data.source=coco", "`data.root`", "must name the folder of the coco data"),
    ("data={source: advance, root: /x}", "the advance data have no text", ""),
    ("evaluation.prompts=[foo]", "the prompt 'foo'", "{c}"),
    ("evaluation.federated_every=1", "`federated_every`", "for example 0.1"),
    ("launch={parallel: 2}", "`launch.parallel`", "need `launch.kind: subprocess`"),
    ("launch={kind: subprocess, devices: 5}", "`training.batch_size` 8", "BatchNorm needs two"),
    ("store.uri=s3//b", "`store.uri` s3//b", "s3://b"),
    ("store.uri=S3//b/c", "`store.uri` S3//b/c", "s3://b/c"),
    ("store.uri=gs//h", "`store.uri` gs//h", "lacks its colon"),
    ("store.uri=' runs'", "`store.uri` ' runs'", "name it without blanks"),
    ('store.uri="runs\\t"', "`store.uri` 'runs\\t'", "name it without blanks"),
    ("store.uri=' s3://b'", "`store.uri` ' s3://b'", "name it without blanks"),
    ("store.uri=s3://$BUCKET/x", "`store.uri` s3://$BUCKET/x", "write out what $BUCKET stands for"),
    ("store.uri=$HOME/x", "`store.uri` $HOME/x", "write out what $HOME stands for"),
    ("store.uri=/x/${USER}-a", "`store.uri` /x/${USER}-a", "write out what ${USER} stands for"),
    ("store.uri=a/~/b", "`store.uri` a/~/b", "stands for the home only at the start"),
    ("store.uri=file:///$HOME", "`store.uri` file:///$HOME", "write out what $HOME stands for"),
    ("data={source: advance, root: $DATA/x}", "`data.root` $DATA/x", "write out what $DATA stands for"),
    ("data={source: advance, root: '/x '}", "`data.root` '/x '", "name it without blanks"),
    ("data={source: advance, root: s3//x}", "`data.root` s3//x", "lacks its colon"),
    ("data={source: advance, root: /x/~}", "`data.root` /x/~", "stands for the home only at the start"),
    ("noequals", "`noequals` has no `=`", "-o training.batch_size=64"),
    ("=3", "`=3` has no `=`", "-o training.batch_size=64"),
    ("seed=[1", "`seed=[1` is not YAML", "quote it"),
]


@pytest.mark.parametrize(("override", "named", "remedy"), MISTAKES)
def test_a_message_names_key_and_remedy(override: str, named: str, remedy: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_spec(VALUES, overrides=[override])
    message = str(caught.value)
    assert named in message and remedy in message
    assert "pydantic" not in message and "http" not in message and "\n" not in message
    assert "tuple[" not in message and ".int`" not in message, "no type of Python is taken for a key"


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        build_spec(VALUES, overrides=["seed=-1", "training.batch_sise=4", "federation.num_clients=x"])
    assert all(key in str(caught.value) for key in ("`seed`", "training.batch_sise", "federation.num_clients"))


def test_coco_has_no_labels() -> None:
    with pytest.raises(SpecError, match="no class labels: use the contrastive objective"):
        build_spec({"data": {"source": "coco", "root": "/x"}, "model": {"objective": {"kind": "supervised"}}})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: [1\nb: 2", "is not YAML"),
        (b"- 1\n", "mapping of keys"),
        (b"\xff\xfe\x00a", "UTF-8"),
        (b"just words", "mapping of keys"),
    ],
)
def test_a_file_that_is_no_spec_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=problem) as caught:
        load_spec(str(path))
    assert "my.yaml" in str(caught.value) and caught.value.remedy and "\n" not in str(caught.value)


def test_a_preset_that_is_not_there_is_guessed() -> None:
    with pytest.raises(NotFoundError, match="did you mean the preset `shapes-layerwise`"):
        load_spec("shapes-layrwise")
    with pytest.raises(NotFoundError, match=r"presets: .*shapes-layerwise"):
        load_spec("/nowhere.yaml")


def test_a_key_that_appears_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("training:\n  batch_size: 8\n  batch_size: 16\n")
    with pytest.raises(SpecError, match=r"`batch_size` .*twice"):
        load_spec(str(tmp_path / "twice.yaml"))
