"""AutoDrafter: what it loads, and what it says when it cannot."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaForCausalLM, Qwen3ForCausalLM, pipeline

from dspark_hf import AutoDrafter, DSparkModel, Eagle3Model
from dspark_hf.modeling.configuration.recognition import is_of_drafter

GOLDEN = Path(__file__).parents[1] / "golden" / "dspark_vanilla"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "drafter"))


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value != "-"}))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_copies_of_the_target_are_read_but_not_needed(folder):
    assert AutoDrafter.from_pretrained(folder).lm_head is not None

    def drop(tensors):
        del tensors["embed_tokens.weight"], tensors["lm_head.weight"]

    edit_tensors(folder, drop)
    assert AutoDrafter.from_pretrained(folder).lm_head is None


def test_subfolder_and_dtype(folder, tmp_path):
    drafter = AutoDrafter.from_pretrained(tmp_path, subfolder="drafter", dtype="bfloat16")
    assert drafter.dtype == torch.bfloat16 and not drafter.training


def test_a_target_with_its_drafter(folder, tiny_target_dir, tmp_path):
    both = shutil.copytree(tiny_target_dir, tmp_path / "both")
    shutil.copytree(folder, both / "dspark")
    drafter = AutoDrafter.from_pretrained(both, dtype="bfloat16")
    assert isinstance(drafter, DSparkModel) and drafter.dtype == torch.bfloat16
    (both / "config.json").unlink()
    with pytest.raises(ValueError, match="There is no config.json in .*both"):
        AutoDrafter.from_pretrained(both)


def test_auto_classes_of_transformers_name_the_loader(tiny_drafter_dir, tiny_target_dir, capfd):
    with pytest.raises(ValueError, match=r"tiny-drafter holds a drafter, .*ForCausalLM would .*AutoDrafter.from_pre"):
        AutoModelForCausalLM.from_pretrained(tiny_drafter_dir)
    with pytest.raises(ValueError, match=r"tiny-drafter holds a drafter, of which LlamaModel would"):
        AutoModel.from_pretrained(tiny_drafter_dir)
    assert "LOAD REPORT" not in capfd.readouterr().err
    # A class that is not transformers' own may be a reader of drafters.
    assert type("Reader", (LlamaForCausalLM,), {"__module__": "engine"}).from_pretrained(tiny_drafter_dir) is not None
    assert AutoModelForCausalLM.from_pretrained(tiny_target_dir).can_generate()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architectures": ["Qwen3DSparkModel"], "target_layer_ids": [1]}, True),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, True),
        ({"speculators_model_type": "eagle3"}, True),
        ({"architectures": ["DSparkDraftModel"], "dspark_config": {}}, True),
        ({"architectures": ["LlamaForCausalLM"], "target_layer_ids": [1]}, False),
        ({"architectures": ["LlamaForCausalLM"]}, False),
        ({}, False),
    ],
)
def test_drafters_are_told_by_their_config(config, expected):
    assert is_of_drafter(config) == expected


def test_saving_again_keeps_the_layout(folder, tmp_path):
    AutoDrafter.from_pretrained(folder).save_pretrained(tmp_path / "again")
    first, second = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "again"))
    for name in ("architectures", "model_type", "target_layer_ids", "block_size", "markov_rank", "rope_parameters"):
        assert first[name] == second[name]
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert set(before) - set(after) == {"embed_tokens.weight", "lm_head.weight"}
    assert all(torch.equal(before[name], after[name]) for name in after)


def test_missing_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.pop("layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"lacks 1 tensors .*layers\.1\.mlp\.up_proj\.weight"):
        AutoDrafter.from_pretrained(folder)


def test_tensor_of_another_shape(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"fc.weight": torch.zeros(3, 3)}))
    with pytest.raises(ValueError, match="do not fit its config.json"):
        AutoDrafter.from_pretrained(folder)


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot be read"):
        AutoDrafter.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_broken_json(folder, name):
    (folder / name).write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        AutoDrafter.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "message"), [("config.json", "no config.json"), ("model.safetensors", "no model.safetensors")]
)
def test_missing_file(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=message):
        AutoDrafter.from_pretrained(folder)


def test_pickled_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"are a pickle \(pytorch_model.bin\), which is not read. Write them as safe"):
        AutoDrafter.from_pretrained(folder)


def test_a_target_is_no_drafter(folder):
    edit_config(folder, target_layer_ids="-", block_size="-")
    with pytest.raises(ValueError, match="no DSpark drafter .*AutoModelForCausalLM"):
        AutoDrafter.from_pretrained(folder)


def test_tensors_that_the_config_does_not_explain(folder):
    edit_config(folder, markov_rank=0, confidence_head_with_markov=False)
    with pytest.raises(ValueError, match=r"holds 2 tensors .*markov_head\.markov_w1\.weight|do not fit"):
        AutoDrafter.from_pretrained(folder)
    edit_config(folder, enable_confidence_head=False)
    with pytest.raises(ValueError, match="holds 4 tensors that its config.json does not explain, e.g. "):
        AutoDrafter.from_pretrained(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.model."])
def test_tensors_of_a_wrapper_are_read(folder, tmp_path, prefix):
    expected = AutoDrafter.from_pretrained(folder).state_dict()

    def rename(tensors):
        for name in list(tensors):
            # FSDP and layers compiled one by one leave their mark in the middle.
            tensors[prefix + name.replace(".mlp.", "._fsdp_wrapped_module.mlp._orig_mod.")] = tensors.pop(name)

    edit_tensors(folder, rename)
    drafter = AutoDrafter.from_pretrained(folder)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in drafter.state_dict().items())
    drafter.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) <= set(expected)


def test_one_tensor_under_two_names_is_refused(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"module.fc.weight": tensors["fc.weight"].clone()}))
    with pytest.raises(ValueError, match="holds 'fc.weight' and 'module.fc.weight', which .* are the same tensor"):
        AutoDrafter.from_pretrained(folder)


def test_a_bias_of_the_drafters_own_head_is_not_dropped(folder):
    edit_config(folder, own_lm_head=True)
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.bias": torch.ones(len(tensors["lm_head.weight"]))}))
    with pytest.raises(ValueError, match="output head .* has a bias"):
        AutoDrafter.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        torch.zeros_like,
        lambda d2t: d2t + torch.arange(16),
        lambda d2t: d2t + torch.arange(16) + 400,
        lambda d2t: d2t - 30,
        lambda d2t: (d2t + torch.arange(16)).flip(0) - torch.arange(16),
    ],
    ids=["never filled in", "token ids", "out of range", "negative", "not ascending"],
)
def test_tables_of_a_reduced_vocabulary_that_disagree(tiny_target_dir, tmp_path, change):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    drafter = DSparkModel.from_target(target, num_hidden_layers=1, markov_rank=2, draft_vocab_size=16)
    drafter.choose_vocabulary(range(20, 36))
    drafter.save_pretrained(tmp_path)
    assert AutoDrafter.from_pretrained(tmp_path).bind(target).d2t.tolist() == [20] * 16
    edit_tensors(tmp_path, lambda tensors: tensors.update(d2t=change(tensors["d2t"])))
    message = "t2d marks 16 of 260 tokens, and the 16 entries of d2t lead to tokens from"
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be used.*{message}"):
        AutoDrafter.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        DSparkModel.from_pretrained(tmp_path).bind(target)


def test_wrong_dtype(folder):
    with pytest.raises(ValueError, match="dtype='float99'"):
        AutoDrafter.from_pretrained(folder, dtype="float99")


def test_absent_repository():
    with pytest.raises(ValueError, match="nobody/nothing"):
        AutoDrafter.from_pretrained("nobody/nothing")


def test_absent_folder(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="There is no folder /nonexistent/x, and it is no repository's name"):
        AutoDrafter.from_pretrained("/nonexistent/x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with (
        pytest.warns(UserWarning, match="There is no folder runs/first; a repository of that name is looked for"),
        pytest.raises(ValueError, match="runs/first"),
    ):
        AutoDrafter.from_pretrained("runs/first", local_files_only=True)


def test_the_word_embedded(folder, monkeypatch, tiny_target_dir):
    monkeypatch.setattr("dspark_hf.hub.embedded.embedded_drafter", lambda: folder)
    assert isinstance(AutoDrafter.from_pretrained("embedded"), DSparkModel)
    pipe = pipeline("text-generation", model=tiny_target_dir, assistant_model="embedded")
    assert isinstance(pipe.assistant_model, DSparkModel)


def test_it_is_not_instantiated():
    with pytest.raises(ValueError, match="from_pretrained"):
        AutoDrafter()


@pytest.mark.parametrize(
    ("dtype", "told"),
    [(torch.int64, "I64"), (torch.bool, "BOOL"), (torch.complex64, "C64"), (torch.float8_e4m3fn, "F8_E4M3"),
     (torch.float8_e5m2, "F8_E5M2"), (torch.uint8, "U8")],
    ids=str,
)  # fmt: skip
def test_weights_of_types_that_no_weight_has_are_refused(folder, dtype, told):
    edit_tensors(folder, lambda tensors: tensors.update({"norm.weight": tensors["norm.weight"].to(dtype)}))
    with pytest.raises(
        ValueError, match=f"norm.weight in .*drafter is stored as {told}, and weights must be BF16, F16"
    ):
        AutoDrafter.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder, value):
    edit_tensors(folder, lambda tensors: tensors["fc.weight"].view(-1)[5:6].fill_(value))
    with pytest.raises(ValueError, match="weight fc.weight in .*drafter has entries that are no finite numbers"):
        AutoDrafter.from_pretrained(folder)


def test_auto_classes_name_the_loader_of_eagle3_too(tiny_target_dir, tmp_path):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    for family in ("llama", "qwen3"):
        Eagle3Model.from_target(target, family=family, target_layer_ids=[0, 2]).save_pretrained(tmp_path / family)
        for load in (AutoModelForCausalLM, {"llama": LlamaForCausalLM, "qwen3": Qwen3ForCausalLM}[family]):
            with pytest.raises(ValueError, match=rf"{family} holds a drafter.*AutoDrafter.from_pretrained"):
                load.from_pretrained(tmp_path / family)
    # Another model's weights of other shapes are told as ever.
    config = AutoConfig.from_pretrained(tiny_target_dir)
    config.intermediate_size += 8
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tiny_target_dir, config=config)
