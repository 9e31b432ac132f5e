"""DSparkForCausalLM: one repository with target and drafter, or with a target's name."""

import copy
import json
import pickle

import pytest
import torch
from hub_server import WRITE_TOKEN
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, pipeline

from dspark_hf import AutoDrafter, DSparkForCausalLM, DSparkModel, attach_drafter, detach_drafter


@pytest.fixture
def target(tiny_target_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_target_dir)


@pytest.fixture
def drafter(tiny_drafter_dir):
    return AutoDrafter.from_pretrained(tiny_drafter_dir)


@pytest.fixture
def model(target, drafter):
    return DSparkForCausalLM.from_parts(target, drafter)


@pytest.fixture
def pushed_target(hub, tiny_target_dir, tiny_tokenizer):
    """The target in a repository of its own."""
    AutoModelForCausalLM.from_pretrained(tiny_target_dir).push_to_hub("org/Model")
    tiny_tokenizer.push_to_hub("org/Model")
    return "org/Model"


IDS = torch.arange(40, 52).unsqueeze(0)
LENGTH = {"max_new_tokens": 12, "do_sample": False}


def same_tensors(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def speculates(model):
    model.drafter.last_stats = None
    out = model.generate(IDS, **LENGTH)
    plain = model.generate(IDS, speculation=False, **LENGTH)
    return torch.equal(out, plain) and model.drafter.last_stats.rounds > 0


def test_it_is_the_target_with_a_drafter(target, drafter):
    before = {name: value.clone() for name, value in target.state_dict().items()}
    model = DSparkForCausalLM.from_parts(target, drafter)
    assert model is target and isinstance(model, DSparkForCausalLM) and isinstance(model, LlamaForCausalLM)
    assert type(model).__name__ == "LlamaForCausalLM" and model.drafter is drafter
    assert same_tensors(model.state_dict(), before) and speculates(model)
    assert model.detach_drafter() is drafter
    assert type(model) is LlamaForCausalLM and not hasattr(model, "drafter")
    assert same_tensors(model.state_dict(), before)
    with pytest.raises(AttributeError):
        model.detach_drafter()


def test_joining_again_takes_the_new_drafter(model, target, tiny_drafter_dir):
    other = AutoDrafter.from_pretrained(tiny_drafter_dir)
    assert DSparkForCausalLM.from_parts(model, other).drafter is other
    assert model.detach_drafter() is other and type(model) is LlamaForCausalLM
    attach_drafter(model, other)
    assert DSparkForCausalLM.from_parts(model, other).drafter is other


def test_a_folder_holds_both(model, target, drafter, tmp_path, tiny_tokenizer):
    model.save_pretrained(tmp_path / "both", tokenizer=tiny_tokenizer)
    assert json.loads((tmp_path / "both" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    plain, report = AutoModelForCausalLM.from_pretrained(tmp_path / "both", output_loading_info=True)
    assert not any(report.values()) and same_tensors(plain.state_dict(), target.state_dict())
    assert same_tensors(AutoDrafter.from_pretrained(tmp_path / "both" / "dspark").state_dict(), drafter.state_dict())
    again = DSparkForCausalLM.from_pretrained(tmp_path / "both")
    assert speculates(again) and not again.training
    again.save_pretrained(tmp_path / "again")
    names = {path.relative_to(tmp_path / "both") for path in (tmp_path / "both").rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()} == {
        name for name in names if "token" not in name.name and name.suffix != ".jinja"
    }


def test_dtype_and_device_map_hold_for_both(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = DSparkForCausalLM.from_pretrained(
        tmp_path, dtype="bfloat16", device_map={"model": "cpu", "lm_head": "cpu"}
    )
    assert again.dtype == again.drafter.dtype == torch.bfloat16
    assert again.generate(IDS, **LENGTH).shape == (1, 24)
    assert again.drafter.last_stats.rounds > 0
    eager = DSparkForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager" and speculates(eager)


def test_copies_and_pickles_stay_what_they_are(model):
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model) and other.drafter is not model.drafter
        assert same_tensors(other.state_dict(), model.state_dict()) and speculates(other)
        other.detach_drafter()
        assert type(other) is LlamaForCausalLM


def test_the_function_detaches_as_the_method_does(model, tmp_path):
    drafter = model.drafter
    assert detach_drafter(model) is drafter and type(model) is LlamaForCausalLM
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "dspark").exists() and not hasattr(model, "_named_target")


def test_pipelines_take_it(model, tiny_tokenizer):
    pipe = pipeline("text-generation", model=model, tokenizer=tiny_tokenizer)
    model.drafter.last_stats = None
    text = pipe("Hello", max_new_tokens=6, do_sample=False, return_full_text=False)[0]["generated_text"]
    assert isinstance(text, str) and model.drafter.last_stats.new_tokens <= 6


def test_a_repository_with_weights(hub, model, tiny_tokenizer, tmp_path):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.push_to_hub("org/Model-DSpark", tokenizer=tiny_tokenizer, tags=["chat"], private=True)
    files = hub.files("org/Model-DSpark")
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "dspark/config.json",
        "dspark/model.safetensors",
    } < set(files)
    assert "base_model_name_or_path" not in json.loads(files["config.json"])
    assert (
        b'DSparkForCausalLM.from_pretrained("org/Model-DSpark"' in files["README.md"]
        and b"- chat" in files["README.md"]
    )
    assert hub.repos["model", "org/Model-DSpark"].private
    again = DSparkForCausalLM.from_pretrained("org/Model-DSpark", token=WRITE_TOKEN, cache_dir=tmp_path)
    assert same_tensors(again.state_dict(), state) and speculates(again)
    assert AutoTokenizer.from_pretrained("org/Model-DSpark").vocab_size == tiny_tokenizer.vocab_size
    assert AutoDrafter.from_pretrained("org/Model-DSpark", subfolder="dspark").config.block_size == 4
    assert AutoModelForCausalLM.from_pretrained("org/Model-DSpark").config.num_hidden_layers == 4


def test_a_repository_that_names_its_target(hub, pushed_target, drafter, tiny_tokenizer):
    target = AutoModelForCausalLM.from_pretrained(pushed_target)
    model = DSparkForCausalLM.from_parts(target, drafter)
    model.push_to_hub("org/Model-DSpark", include_target=False, tokenizer=tiny_tokenizer)
    files = hub.files("org/Model-DSpark")
    assert "model.safetensors" not in files and "dspark/model.safetensors" in files
    assert json.loads(files["config.json"])["base_model_name_or_path"] == "org/Model"
    assert b"base_model: org/Model\n" in files["README.md"]
    again = DSparkForCausalLM.from_pretrained("org/Model-DSpark")
    assert speculates(again) and again.name_or_path == "org/Model"
    assert DSparkForCausalLM.from_pretrained("org/Model-DSpark", dtype="bfloat16").dtype == torch.bfloat16
    again.push_to_hub("org/Another-DSpark")  # as it was loaded
    assert "model.safetensors" not in hub.files("org/Another-DSpark")
    assert DSparkForCausalLM.from_pretrained("org/Another-DSpark").drafter.config.block_size == 4


def test_a_named_target_may_have_a_revision(hub, pushed_target, drafter, tmp_path):
    first = hub.repos["model", pushed_target].branches["main"]
    changed = AutoModelForCausalLM.from_pretrained(pushed_target)
    weight = changed.model.norm.weight.data.clone()
    changed.model.norm.weight.data.zero_()
    changed.push_to_hub(pushed_target)
    model = DSparkForCausalLM.from_parts(changed, drafter)
    model._named_target = (pushed_target, first)
    model.save_pretrained(tmp_path / "pinned")
    pinned = DSparkForCausalLM.from_pretrained(tmp_path / "pinned")
    assert torch.equal(pinned.model.norm.weight, weight)
    pinned.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["base_model_revision"] == first


def test_revision_and_subfolder_are_the_composites(hub, model, drafter, tmp_path):
    model.push_to_hub("org/Model-DSpark")
    drafter.fc.weight.data.zero_()
    model.push_to_hub("org/Model-DSpark", revision="v2")
    weights = [
        DSparkForCausalLM.from_pretrained("org/Model-DSpark", revision=revision).drafter.fc.weight.abs().sum().item()
        for revision in ("main", "v2")
    ]
    assert weights[0] > 0 == weights[1]
    model.save_pretrained(tmp_path / "deep" / "inside")
    assert speculates(DSparkForCausalLM.from_pretrained(tmp_path / "deep", subfolder="inside"))


def test_offline_reads_the_cache_alone(hub, model, monkeypatch):
    model.push_to_hub("org/Model-DSpark")
    online = DSparkForCausalLM.from_pretrained("org/Model-DSpark")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    offline = DSparkForCausalLM.from_pretrained("org/Model-DSpark")
    assert same_tensors(online.drafter.state_dict(), offline.drafter.state_dict()) and speculates(offline)
    with pytest.raises(
        ValueError, match=r"org/Other-DSpark / dspark is not in the local cache, and this run is offline"
    ):
        DSparkForCausalLM.from_pretrained("org/Other-DSpark")
    assert hub.requests == []


def test_a_private_repository_needs_a_token(hub, model, monkeypatch, tmp_path):
    model.push_to_hub("org/Model-DSpark", private=True)
    hub.log_in(monkeypatch, None)
    with pytest.raises(
        ValueError, match="(?s)Cannot reach a drafter at org/Model-DSpark / dspark.*private repository"
    ):
        DSparkForCausalLM.from_pretrained("org/Model-DSpark", cache_dir=tmp_path)
    assert DSparkForCausalLM.from_pretrained("org/Model-DSpark", cache_dir=tmp_path, token=WRITE_TOKEN)


def test_what_is_missing_is_told_before_the_target_is_fetched(hub, pushed_target, model, tmp_path):
    hub.requests.clear()
    with pytest.raises(ValueError, match=r"no config.json in org/Model / dspark"):
        DSparkForCausalLM.from_pretrained(pushed_target)
    assert not any("safetensors" in path for _, path, _ in hub.requests)
    model.drafter.save_pretrained(tmp_path / "only" / "dspark")
    with pytest.raises(ValueError, match=r"has a drafter in dspark/, but no target.*AutoDrafter"):
        DSparkForCausalLM.from_pretrained(tmp_path / "only")


def test_another_target_than_the_one_held_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds the weights of its target.*target='org/Other'. Leave it out"):
        DSparkForCausalLM.from_pretrained(tmp_path, target="org/Other")


def test_a_drafter_of_another_shape_is_refused(target):
    other = DSparkModel.from_target(target, target_layer_ids=[0])
    other.config.num_target_layers = 9
    with pytest.raises(ValueError, match="number of target layers differs"):
        DSparkForCausalLM.from_parts(target, other)
    assert type(target) is LlamaForCausalLM


def test_what_cannot_be_pushed_or_saved(hub, model, target, drafter, tmp_path):
    with pytest.raises(ValueError, match="no Hub repository that others could load.*include_target=True"):
        model.push_to_hub("org/Model-DSpark", include_target=False)
    assert not hub.repos
    with pytest.raises(ValueError, match="call model.push_to_hub"):
        model.save_pretrained(tmp_path, push_to_hub=True)
    model.config._name_or_path = model.name_or_path = ""
    with pytest.raises(ValueError, match="made in memory and has no name"):
        model.save_pretrained(tmp_path, include_target=False)
    with pytest.raises(ValueError, match="not instantiated; use DSparkForCausalLM.from_pretrained"):
        DSparkForCausalLM()


def test_the_drafter_alone_is_found_in_it(model, drafter, tmp_path):
    model.save_pretrained(tmp_path)
    found = AutoDrafter.from_pretrained(tmp_path)
    assert type(found) is type(drafter) and same_tensors(found.state_dict(), drafter.state_dict())
