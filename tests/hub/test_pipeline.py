"""transformers' own pipelines with a drafter: an object, a folder, a repository."""

import pytest
import torch
from transformers import AutoModelForCausalLM, pipeline

from dspark_hf import AutoDrafter, DSparkModel, SpeculationConfig

LENGTH = {"max_new_tokens": 12, "do_sample": False}
TEXTS = ["one two one two", "three"]


@pytest.fixture
def answers(tiny_target_dir):
    return pipeline("text-generation", model=tiny_target_dir)(TEXTS, **LENGTH)


@pytest.mark.parametrize("kind", ["object", "folder", "repository"])
def test_a_drafter_drafts(kind, hub, tiny_target_dir, tiny_drafter_dir, answers):
    drafter = tiny_drafter_dir
    if kind == "object":
        drafter = AutoDrafter.from_pretrained(tiny_drafter_dir)
        # Of no account: the vocabulary is the target's.
        drafter.config.pad_token_id = 7
    elif kind == "repository":
        AutoDrafter.from_pretrained(tiny_drafter_dir).push_to_hub("org/Model-drafter")
        drafter = "org/Model-drafter"
    pipe = pipeline("text-generation", model=tiny_target_dir, assistant_model=drafter, dtype=torch.float32)
    assert isinstance(pipe.assistant_model, DSparkModel) and pipe.assistant_tokenizer is None
    assert pipe(TEXTS, speculation=SpeculationConfig(check_target=False), **LENGTH) == answers
    assert pipe.assistant_model.last_stats.rounds > 0


def test_the_drafter_takes_the_targets_dtype(tiny_target_dir, tiny_drafter_dir):
    pipe = pipeline("text-generation", model=tiny_target_dir, assistant_model=tiny_drafter_dir, dtype=torch.bfloat16)
    assert pipe.assistant_model.dtype == torch.bfloat16


def test_other_assistants_are_loaded_as_ever(tiny_target_dir, tmp_path, answers):
    pipe = pipeline("text-generation", model=tiny_target_dir, assistant_model=tiny_target_dir)
    assert type(pipe.assistant_model).__name__ == "LlamaForCausalLM"
    assert pipe(TEXTS[0], **LENGTH) == answers[0]
    with pytest.raises(OSError, match="nowhere"):
        pipeline("text-generation", model=tiny_target_dir, assistant_model=str(tmp_path / "nowhere"))


def test_generate_wants_a_model_in_memory(tiny_target_dir, tiny_drafter_dir):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    with pytest.raises(
        ValueError, match=r"tiny-drafter.* is a name: pass a model in memory.*AutoDrafter.from_pretrain"
    ):
        target.generate(torch.tensor([[1, 2]]), assistant_model=tiny_drafter_dir, **LENGTH)
    drafter = AutoDrafter.from_pretrained(tiny_drafter_dir)
    with pytest.raises(ValueError, match=r"got \{'max_draft_len': 3\}. Write SpeculationConfig\(\*\*\{"):
        target.generate(torch.tensor([[1, 2]]), assistant_model=drafter, speculation={"max_draft_len": 3}, **LENGTH)
