"""Trust in a repository is not trust in those that it names, nor a way to folders of this machine."""

import json

import pytest
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM

from dspark_hf import AutoDrafter, DSparkForCausalLM

CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM
pathlib.Path({mark!r}).write_text("ran")
class C(LlamaConfig):
    model_type = "own-code"
class M(LlamaForCausalLM):
    config_class = C
"""


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def target(tiny_target_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_target_dir)


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that is there once somebody's code has run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "mark"


@pytest.fixture
def push(hub, tmp_path, target, tiny_drafter_dir, mark):
    """`push(repo_id, **config)`: upload a composite repository, or with `code=True` a target with code of its own."""

    def upload(repo_id, code=False, **config):
        folder = tmp_path / repo_id.replace("/", "-")
        if code:
            target.save_pretrained(folder)
            (folder / "own.py").write_text(CODE.format(mark=str(mark)))
            config |= {"model_type": "own-code"}
            config.setdefault("auto_map", {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
        else:
            model = DSparkForCausalLM.from_parts(target, AutoDrafter.from_pretrained(tiny_drafter_dir))
            model.save_pretrained(folder)
            model.detach_drafter()
        edit(folder / "config.json", **config)
        HfApi().create_repo(repo_id)
        HfApi().upload_folder(repo_id=repo_id, folder_path=folder)
        return folder

    return upload


def test_code_of_a_named_repository_does_not_run(push, mark):
    push("org/stranger", code=True)
    folder = push("org/both", base_model_name_or_path="org/stranger")
    for place in ("org/both", folder):
        with pytest.raises(ValueError, match=r"needs code of org/stranger, .*target='org/stranger', trust_remote"):
            DSparkForCausalLM.from_pretrained(place, trust_remote_code=True)
        assert not mark.exists()
        with pytest.raises(ValueError, match=f"{place} names 'org/stranger', not 'org/other'"):
            DSparkForCausalLM.from_pretrained(place, target="org/other", trust_remote_code=True)
        assert not mark.exists()
    model = DSparkForCausalLM.from_pretrained("org/both", target="org/stranger", trust_remote_code=True)
    assert mark.exists() and model.config.model_type == "own-code" and model.drafter.is_bound_to(model)


def test_code_of_a_folder_that_is_named_does_not_run(push, mark, tmp_path, target):
    other = push("org/stranger", code=True)
    folder = push("org/both", base_model_name_or_path=str(other))
    with pytest.raises(ValueError, match=f"needs code of {other}"):
        DSparkForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert not mark.exists()
    assert DSparkForCausalLM.from_pretrained(folder, target=str(other), trust_remote_code=True)
    assert mark.exists()


def test_code_that_lies_elsewhere_does_not_run_either(push, mark):
    push("org/stranger", code=True)
    classes = {"AutoConfig": "C", "AutoModelForCausalLM": "M"}
    auto_map = {name: f"org/stranger--own.{cls}" for name, cls in classes.items()}
    push("org/both", model_type="own-code", auto_map=auto_map)
    with pytest.raises(ValueError, match="org/both needs code of org/stranger"):
        DSparkForCausalLM.from_pretrained("org/both", trust_remote_code=True)
    assert not mark.exists()
    assert DSparkForCausalLM.from_pretrained("org/both", target="org/stranger", trust_remote_code=True)
    assert mark.exists()


def test_where_no_code_is_needed_trust_is_no_matter(push, target):
    target.push_to_hub("org/Model")
    push("org/both", base_model_name_or_path="org/Model")
    assert DSparkForCausalLM.from_pretrained("org/both", trust_remote_code=True).drafter is not None
    push("org/whole")
    assert DSparkForCausalLM.from_pretrained("org/whole", trust_remote_code=True).drafter is not None


@pytest.mark.parametrize("name", ["{folder}", "../target", "./target", "target/../target", "~/target", "a/b/c"])
def test_a_repository_names_no_folder(hub, push, tmp_path, tiny_target_dir, monkeypatch, name):
    name = name.format(folder=tiny_target_dir)
    folder = push("org/both", base_model_name_or_path=name)
    with pytest.raises(ValueError, match="org/both is a repository, and names .*which can be no repository"):
        DSparkForCausalLM.from_pretrained("org/both")
    if name == tiny_target_dir:  # a folder may name others
        assert DSparkForCausalLM.from_pretrained(folder).drafter is not None
    (folder / "dspark" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": name})
    )
    HfApi().upload_folder(repo_id="org/both", folder_path=folder)
    with pytest.raises(ValueError, match="org/both is a repository, and names .*which can be no repository"):
        AutoDrafter.from_pretrained("org/both", subfolder="dspark")


def test_a_folder_does_not_stand_in_for_a_repository(push, target, tmp_path, monkeypatch):
    target.push_to_hub("org/Model")
    push("org/both", base_model_name_or_path="org/Model")
    monkeypatch.chdir(tmp_path)
    target.save_pretrained("org/Model")
    with pytest.raises(ValueError, match="something of that name lies in the working folder"):
        DSparkForCausalLM.from_pretrained("org/both")
    assert DSparkForCausalLM.from_pretrained("org/both", target="org/Model").drafter is not None
