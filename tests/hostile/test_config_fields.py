"""Every field of a drafter's config.json, of each packaging, with values of other kinds: an error that names the
field, or a drafter as before; from the loader and from what says whether engines load it."""

import json

import pytest
from safetensors.torch import load_file, save_file

from dspark_hf import AutoDrafter, DSparkModel
from dspark_hf.hub.described import faults
from dspark_hf.hub.packagings import write_packaging
from dspark_hf.publishing.config_fields import check_fields, wrong_field
from dspark_hf.publishing.engines import ENGINES, Checkpoint

NAMED_AS = {"model_type": "drafter family", "speculators_model_type": "kind", "dflash_config": "target_layer_ids",
            "transformer_layer_config": "config.json lacks hidden_size"}  # fmt: skip
ABSENT = object()
VALUES = (None, ABSENT, "x", -1, 1.5, True, 10**400, [1], ["x"], [[{}]], {"a": 1})


def fields_of(config, prefix=()):
    for name, value in config.items():
        yield (*prefix, name)
        if isinstance(value, dict) and name != "rope_parameters":
            yield from fields_of(value, (*prefix, name))


def changed(config, path, value):
    config = json.loads(json.dumps(config))
    place = config
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    if value is ABSENT:
        del place[path[-1]]
    return config


@pytest.fixture
def written(target, tmp_path):
    """`written(name)`: a drafter in a packaging."""

    def write(name):
        drafter = DSparkModel.from_target(
            target, family="qwen3", num_hidden_layers=1, target_layer_ids=[1, 2], block_size=4, markov_rank=4
        )
        drafter.config.target_name_or_path = "org/Model"
        write_packaging(drafter, tmp_path / name, name)
        return tmp_path / name

    return write


def judge(folder):
    """What `dspark convert --check` does for all engines."""
    checkpoint = Checkpoint.read(folder)
    for engine in ENGINES.values():
        engine.problems(checkpoint)
    return faults(folder)


@pytest.mark.parametrize("packaging", ["flat", "speculators", "specforge"])
def test_no_value_of_a_field_ends_in_another_error(written, packaging):
    folder = written(packaging)
    config = json.loads((folder / "config.json").read_text())
    assert judge(folder) == []
    wrong = []
    for path in fields_of(config):
        for value in VALUES:
            (folder / "config.json").write_text(json.dumps(changed(config, path, value)))
            try:
                judge(folder)
            except Exception as error:
                words, text = {path[-1], NAMED_AS.get(path[-1], path[-1])}, str(error)
                is_told = type(error) is ValueError and str(folder) in text and len(text) < 1500
                if not is_told or not any(word in text for word in words):
                    wrong.append((path, f"{value!r:.20}", f"{error!r:.300}"))
    assert wrong == []


def test_one_field_of_each_kind(written):
    folder = written("flat")
    config = json.loads((folder / "config.json").read_text())
    for fields, told in (
        ({"hidden_size": "16"}, "hidden_size must be a whole number above 0, got '16'"),
        ({"markov_rank": -1}, "markov_rank must be a whole number from 0 up, got -1"),
        ({"vocab_size": 2**31}, "vocab_size must be at most 2147483647, got 2147483648"),
        ({"vocab_size": 10**400}, "vocab_size must be at most 2147483647, got a number of 1329 bits"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta must be a finite number above 0, got 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number, got nan"),
        ({"sample_from_anchor": 1}, "sample_from_anchor must be true or false, got 1"),
        ({"markov_head_type": 7}, "markov_head_type must be text, got 7"),
        ({"layer_types": "full_attention"}, "layer_types must be a list of names"),
        ({"target_layer_ids": [True]}, "target_layer_ids must be a list of layers"),
        ({"speculators_config": {"verifier": "x"}}, "speculators_config.verifier must be fields"),
        ({"speculators_config": {"proposal_methods": [{"speculative_tokens": "7"}]}},
         "speculators_config.proposal_methods.speculative_tokens must be a whole number above 0"),
        ({"transformer_layer_config": {"hidden_size": 0}}, "transformer_layer_config.hidden_size must be a whole"),
    ):  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config | fields))
        for read in (AutoDrafter.from_pretrained, Checkpoint.read):
            with pytest.raises(ValueError, match=f"{folder}: config.json: {told}"):
                read(folder)
    assert wrong_field({"hidden_size": None, "unknown": object()}) is None
    nested = {}
    for _ in range(5000):
        nested = {"dflash_config": nested}
    check_fields(nested, "here")


def test_empty_layers_of_speculators_take_no_memory(written):
    folder = written("speculators")
    config = json.loads((folder / "config.json").read_text())
    sizes = config["transformer_layer_config"]
    for layers, told in (({}, "transformer_layer_config .* is missing or empty"),
                         ({"model_type": "qwen3"}, "lacks hidden_size, num_attention_heads"),
                         (sizes | {"intermediate_size": 2**31 - 1}, "mlp.*has the shape|cannot be made")):  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config | {"transformer_layer_config": layers}))
        with pytest.raises(ValueError, match=told):
            AutoDrafter.from_pretrained(folder)


def test_what_engines_would_not_find_is_named(written):
    folder = written("flat")
    tensors = load_file(folder / "model.safetensors")

    def told(**changes):
        others = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
        save_file(others, folder / "model.safetensors", {"format": "pt"})
        return judge(folder)

    q_proj, norm = "layers.0.self_attn.q_proj.weight", "norm.weight"
    assert told(**{q_proj: None, norm: None}) == [f"it lacks the tensor {q_proj}", f"it lacks the tensor {norm}"]
    (shape,) = told(**{norm: tensors[norm][:3].clone()})
    assert shape == f"{norm} has the shape [3], and its config.json asks for [16]"
    assert told(other=tensors[norm].clone()) == ["its config.json does not explain the tensor other"]
    many = told(**{f"other.{number:02}": tensors[norm].clone() for number in range(20)})
    assert len(many) == 9 and "tensor other.07" in many[-2] and many[-1] == "so with 12 more"
    (kind,) = told(**{norm: tensors[norm].long()})
    assert kind == f"{norm} is stored as I64, which no weight is"
