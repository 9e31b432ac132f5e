"""Compiled rounds: the same tokens, code that is made once, and who is told that it cannot be made."""

import gc
import shutil
from functools import partial

import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from tiny_targets import MORE_FAMILIES, VOCAB_SIZE, make_prompt, make_target, padded_prompts
from torch._dynamo.utils import counters
from transformers import DynamicCache

from dspark_hf import DSparkModel, Eagle3Model, PromptLookup, SpeculationConfig
from dspark_hf.generation.target.row_attention import Trial
from dspark_hf.modeling import compiling
from dspark_hf.modeling.cache_name import CACHE_NAME

COMPILED = SpeculationConfig(compile=True, policy="fixed")
GREEDY = {"max_new_tokens": 24, "do_sample": False}


@pytest.fixture
def traced(monkeypatch):
    """torch.compile that traces and guards, but runs what it traced as it is: code for a CPU takes long to make."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.fixture(scope="module")
def drafter(target):
    return DSparkModel.from_target(
        target, target_layer_ids=[0, 2], mask_token_id=VOCAB_SIZE - 1, markov_rank=8, block_size=4
    )


def num_graphs():
    return counters["stats"]["unique_graphs"]


def check_uneven_rows(target, lengths, side, **options):
    """Rows that are offered, accept and end differently, so that they leave one after the other."""
    ids, mask = padded_prompts(lengths, side)
    oracle, plain = greedy_oracle(
        target, ids, [0, 4, 2, 1, 3], 24, attention_mask=mask, uneven=True, enable_confidence_head=True
    )
    speculation = SpeculationConfig(compile=True, confidence_threshold=0.5, **options)
    out = target.generate(ids, attention_mask=mask, assistant_model=oracle, speculation=speculation, **GREEDY)
    assert out.tolist() == plain.tolist()
    assert oracle.anchors_were_right


def check_one_row(target, length):
    ids = make_prompt(length)
    oracle, plain = greedy_oracle(target, ids, range(5), 24)
    out = target.generate(ids, assistant_model=oracle, speculation=COMPILED, **GREEDY)
    assert out.tolist() == plain.tolist()
    assert set(oracle.last_stats.accepted_lens) == set(range(5))


# Windows slide in some layers; soft-caps need the target's own attention.
@pytest.mark.parametrize(
    "family",
    ["llama", pytest.param("gemma3_text", marks=pytest.mark.slow), pytest.param("gemma2", marks=pytest.mark.slow)],
)
def test_any_round_of_a_target_runs_the_code_of_the_first(traced, family):
    target = make_target(family, **MORE_FAMILIES.get(family, {}))
    before = num_graphs()
    check_one_row(target, 11)
    assert num_graphs() - before == 1
    check_uneven_rows(target, [5, 14, 2, 9], "left")
    # A single row is a case of its own.
    assert num_graphs() - before == 2
    with torch.compiler.set_stance("fail_on_recompile"):
        check_uneven_rows(target, [30, 3], "right", max_draft_len=2)
        check_uneven_rows(target, [7, 7, 12, 1, 9], "left")
        check_one_row(target, 40)


@pytest.mark.parametrize(
    "options",
    [GREEDY, pytest.param({"max_new_tokens": 24, "temperature": 0.7, "do_sample": True}, marks=pytest.mark.slow)],
    ids=["greedy", "sampled"],
)
def test_a_drafter_drafts_as_without_and_is_compiled_once(traced, target, drafter, options):
    ids, mask = padded_prompts([5, 14, 2, 9])
    batches = {"inputs": ids, "attention_mask": mask}, {"inputs": make_prompt(11)}

    def results(compile):
        for inputs in batches:
            speculation = SpeculationConfig(compile=compile, policy="fixed", seed=1)
            out = target.generate(**inputs, assistant_model=drafter, speculation=speculation, **options)
            stats = drafter.last_stats
            yield out.tolist(), stats.accepted_lens, stats.verified_lens

    plain = list(results(compile=False))
    assert list(results(compile=True)) == plain
    with torch.compiler.set_stance("fail_on_recompile"):
        assert list(results(compile=True)) == plain


@pytest.mark.parametrize("kind", ["lookup", "eagle3"])
def test_other_drafters_run_as_always(traced, target, kind):
    if kind == "lookup":
        drafter = PromptLookup()
    else:
        drafter = Eagle3Model.from_target(target, target_layer_ids=[0, 2])
    ids = make_prompt(6).repeat(1, 3)
    out = target.generate(ids, assistant_model=drafter, speculation=COMPILED, **GREEDY)
    assert out.tolist() == target.generate(ids, **GREEDY).tolist()


def test_a_target_is_left_as_it_was(traced, target, drafter):
    ids, seen = make_prompt(5), []
    layer = target.model.layers[1]
    layer.forward = partial(type(layer).forward, layer)
    own, handle = layer.forward, layer.mlp.register_forward_hook(lambda *args: seen.append(1))
    try:
        out = target.generate(ids, assistant_model=drafter, speculation=COMPILED, **GREEDY)
        assert layer.forward is own
        # The prompt, and every round.
        assert len(seen) == 1 + drafter.last_stats.rounds
    finally:
        handle.remove()
        del layer.forward
    assert all("forward" not in vars(layer) for layer in target.model.layers)
    assert target.config._attn_implementation == "sdpa"
    assert out.tolist() == target.generate(ids, **GREEDY).tolist()


def test_compiled_code_goes_with_its_model(traced):
    gc.collect()
    before = len(compiling._kept)
    target = make_target(num_hidden_layers=2)
    target.generate(make_prompt(5), assistant_model=PromptLookup(), speculation=COMPILED, **GREEDY)
    assert len(compiling._kept) == before + 1
    del target
    gc.collect()
    assert len(compiling._kept) == before


def test_attention_that_is_not_asked_for_by_name_is_told(traced, target, drafter, monkeypatch):
    monkeypatch.setattr(Trial, "allows_packing", lambda self, cache: False)
    ids = make_prompt(5)
    with pytest.warns(UserWarning, match="leaves the target as it is: not every layer of LlamaForCausalLM"):
        out = target.generate(ids, assistant_model=drafter, speculation=COMPILED, **GREEDY)
    assert out.tolist() == target.generate(ids, **GREEDY).tolist()


def must_not_run(*args, **kwargs):
    raise AssertionError("the target ran")


@pytest.mark.parametrize(
    ("family", "kwargs", "message"),
    [
        ("llama", {"return_dict_in_generate": True}, "a cache that someone gets .return_dict_in_generate"),
        ("llama", {CACHE_NAME: DynamicCache()}, "a cache that someone gets"),
        ("lfm2", {}, "Lfm2ForCausalLM, whose cache holds more than keys and values"),
    ],
)
def test_what_cannot_be_compiled(family, kwargs, message):
    target = make_target(family)
    target.forward = must_not_run
    with pytest.raises(ValueError, match=message):
        target.generate(
            make_prompt(5), assistant_model=TableDrafter(VOCAB_SIZE), speculation=COMPILED, **GREEDY, **kwargs
        )


def attending_in_chunks(target):
    target.config.attention_chunk_size = 8


def hooked(target):
    target.lm_head._hf_hook = object()


def compiled_before(target):
    target.model.layers[0].compile()


def of_another_attention(target):
    target.config._attn_implementation = "flex_attention"


def without_a_list_of_layers(target):
    target.model.layers = torch.nn.Sequential(*target.model.layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attending_in_chunks, "needs rounds that can be packed, and those of LlamaForCausalLM with these inputs"),
        (hooked, "LlamaForCausalLM with modules that accelerate brings to a device"),
        (compiled_before, "LlamaForCausalLM with modules that are compiled already"),
        (of_another_attention, "LlamaForCausalLM with another attention than sdpa or eager"),
        (without_a_list_of_layers, "whose decoder layers do not stand in one list"),
    ],
)
def test_targets_that_cannot_be_compiled(change, message):
    target = make_target()
    change(target)
    target.forward = must_not_run
    with pytest.raises(ValueError, match=f"compile=True .*{message}"):
        target.generate(make_prompt(5), assistant_model=TableDrafter(VOCAB_SIZE), speculation=COMPILED, **GREEDY)


def test_a_missing_compiler_is_told(target, drafter, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler on the CPU, and g\+\+ or clang\+\+ or cl is not"):
        target.generate(make_prompt(5), assistant_model=drafter, speculation=COMPILED, **GREEDY)


@pytest.mark.slow
def test_generated_code_is_exact():
    target = make_target()
    own = DSparkModel.from_target(
        target, target_layer_ids=[0, 2], mask_token_id=VOCAB_SIZE - 1, markov_rank=8, block_size=4
    )
    check_one_row(target, 11)
    check_uneven_rows(target, [5, 14, 2, 9], "left")
    ids = make_prompt(11)
    out = target.generate(ids, assistant_model=own, speculation=COMPILED, **GREEDY)
    assert out.tolist() == target.generate(ids, **GREEDY).tolist()
    assert own.last_stats.rounds > 0
