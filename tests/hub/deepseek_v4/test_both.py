"""DSparkForCausalLM of a DeepSeek-V4 checkpoint that holds its drafter; and what is fetched of one."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from dspark_hf import AutoDrafter, DSparkForCausalLM
from dspark_hf.data.chat import prompt_ids
from dspark_hf.data.encoding_file import load_tokenizer

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[2] / "data")]
from encoders import without_template, write_encoding  # noqa: E402
from released import write_released  # noqa: E402

GOLDEN = Path(__file__).parents[2] / "golden" / "v4_dspark"
IDS = torch.arange(40, 52).unsqueeze(0)
LENGTH = {"max_new_tokens": 12, "do_sample": False}
WITH_ALL_ENTRIES = {"index_topk": 64}


@pytest.fixture
def release(tmp_path):
    """The golden checkpoint without the numbers that are expected of it."""
    left_out = shutil.ignore_patterns("expected*", "target*")
    return Path(shutil.copytree(GOLDEN, tmp_path / "release", ignore=left_out))


def speculates(model):
    model.drafter.last_stats = None
    out = model.generate(IDS, **LENGTH)
    plain = model.generate(IDS, speculation=False, **LENGTH)
    return torch.equal(out, plain) and model.drafter.last_stats.rounds > 0


def test_one_checkpoint_gives_both(release, tmp_path):
    model = DSparkForCausalLM.from_pretrained(release, **WITH_ALL_ENTRIES)
    assert type(model).__name__ == "DeepseekV4ForCausalLM" and speculates(model)
    drafter = model.detach_drafter()
    expected = AutoDrafter.from_pretrained(release).state_dict()
    assert not hasattr(model, "drafter") and all(torch.equal(v, expected[k]) for k, v in drafter.state_dict().items())

    DSparkForCausalLM.from_parts(model, drafter).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "dspark" / "config.json").exists()
    again = DSparkForCausalLM.from_pretrained(tmp_path / "saved", **WITH_ALL_ENTRIES)
    assert speculates(again)
    assert all(torch.equal(v, expected[k]) for k, v in again.detach_drafter().state_dict().items())


def test_a_quantised_checkpoint_gives_both(tmp_path):
    write_released(tmp_path / "release", GOLDEN)
    model = DSparkForCausalLM.from_pretrained(tmp_path / "release", **WITH_ALL_ENTRIES)
    assert model.dtype == model.drafter.dtype == torch.bfloat16
    out = model.generate(IDS, **LENGTH)
    assert out.shape == (1, 24) and model.drafter.last_stats.rounds > 0


def test_only_the_drafters_files_are_fetched_and_a_composite_names_its_base(hub, release, tmp_path):
    api = HfApi()
    api.create_repo("org/Model")
    api.upload_folder(repo_id="org/Model", folder_path=release)
    hub.requests.clear()
    drafter = AutoDrafter.from_pretrained("org/Model")
    fetched = {path.rsplit("/", 1)[-1] for method, path, _ in hub.requests if method == "GET"}
    shards = {name for name in fetched if name.startswith("model-")}
    assert shards == {f"model-0000{number}-of-00004.safetensors" for number in (2, 3, 4)}
    assert drafter.config.target_name_or_path == "org/Model" and drafter.name_or_path == "org/Model"

    model = DSparkForCausalLM.from_pretrained("org/Model", **WITH_ALL_ENTRIES)
    model.save_pretrained(tmp_path / "named", include_target=False)
    assert {path.name for path in (tmp_path / "named").rglob("*.safetensors")} == {"model.safetensors"}
    again = DSparkForCausalLM.from_pretrained(tmp_path / "named", target="org/Model")
    assert again.name_or_path == "org/Model" and again.drafter.config.target_layer_ids == [0, 1, 2]


def test_the_next_release_is_refused_by_name(release):
    config = json.loads((release / "config.json").read_text())
    (release / "config.json").write_text(json.dumps({**config, "model_type": "deepseek_v41"}))
    for load in (AutoDrafter.from_pretrained, DSparkForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match="is a DeepSeek-V4.1 target, whose drafter is another than DeepSeek-V4's"):
            load(release)


def test_the_repository_chats_as_the_readme_says(release, tiny_tokenizer):
    # The golden checkpoint has 193 tokens, which are enough for letters.
    without_template(tiny_tokenizer).save_pretrained(release)
    write_encoding(release)
    model = DSparkForCausalLM.from_pretrained(release, **WITH_ALL_ENTRIES)
    tokenizer = load_tokenizer(release, trust_remote_code=True)
    ids = [one for one in prompt_ids(tokenizer, "Why is the sky blue?", thinking=True) if one < 193]
    out = model.generate(torch.tensor([ids]), **LENGTH)
    assert out.shape == (1, len(ids) + 12) and model.drafter.last_stats.rounds > 0
