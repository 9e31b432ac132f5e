"""What is not supported says so, before any work."""

import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from tiny_targets import make_prompt, make_target
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaForCausalLM,
    ProphetNetConfig,
    ProphetNetForCausalLM,
    QuantizedCache,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)

from dspark_hf import DSparkModel, PromptLookup, SpeculationConfig
from dspark_hf.generation import speculative_generate
from dspark_hf.modeling.cache_name import CACHE_NAME


@pytest.fixture
def guarded(target, monkeypatch):
    """A target that must not run."""

    def forward(*args, **kwargs):
        raise AssertionError("the target ran")

    monkeypatch.setattr(target, "forward", forward)
    return target


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"num_beams": 3},
            "speeds up greedy search and sampling, but these arguments ask for beam search .num_beams=3.*"
            "speculation=False",
        ),
        ({"num_beams": 3, "do_sample": True}, "ask for beam sample"),
        (
            {"prompt_lookup_num_tokens": 4},
            "prompt_lookup_num_tokens=4 is not supported.*SpeculationConfig.prompt_lookup=True",
        ),
        ({"max_matching_ngram_size": 3}, "max_matching_ngram_size=3 is not supported.*PromptLookup.max_ngram"),
        ({"num_assistant_tokens": 5}, "num_assistant_tokens=5 is not supported.*SpeculationConfig.max_draft_len"),
        ({"num_assistant_tokens_schedule": "heuristic"}, "num_assistant_tokens_schedule='heuristic' is not supported"),
        (
            {"assistant_confidence_threshold": 0.9},
            "assistant_confidence_threshold=0.9 is not supported.*SpeculationConfig.confidence_threshold",
        ),
        ({"assistant_lookbehind": 4}, "assistant_lookbehind=4 is not supported.*shares the target's vocabulary"),
        ({"target_lookbehind": 4}, "target_lookbehind=4 is not supported"),
        ({"speculation_type": "dflash"}, "speculation_type='dflash' is not supported.*says how it drafts"),
        ({"assistant_early_exit": 2}, "assistant_early_exit=2 is not supported"),
        ({"assistant_ensemble_weight": 0.5}, "assistant_ensemble_weight=0.5 is not supported.*changes the output"),
        ({"dola_layers": "low"}, "these arguments ask for dola generation"),
        (
            {"cache_implementation": "paged"},
            "'paged' asks for continuous batching, which takes drafters in generate_batch",
        ),
        ({"synced_gpus": True}, "synced_gpus=True keeps processes in step, but there is no process group"),
        (
            {"cache_implementation": "static"},
            "not supported for TableDrafter, which is none of this library's drafters",
        ),
        ({"assistant_tokenizer": object(), "tokenizer": object()}, "assistant_tokenizer is not supported"),
        ({"speculation": "fast"}, "speculation must be a SpeculationConfig, None .* False, got 'fast'"),
        ({"speculation": True}, "speculation must be a SpeculationConfig, None for the defaults or, .*got True"),
        ({"speculation": False}, "speculation=False and assistant_model=drafter contradict"),
    ],
)
def test_options(guarded, kwargs, message):
    with pytest.raises(ValueError, match=message):
        guarded.generate(make_prompt(5), assistant_model=TableDrafter(64), max_new_tokens=8, **kwargs)


def test_mtp(guarded, monkeypatch):
    with pytest.raises(ValueError, match="use_mtp=True is not supported.*pass one drafter only"):
        guarded.generate(make_prompt(5), assistant_model=TableDrafter(64), max_new_tokens=8, use_mtp=True)


def test_speculation_without_a_drafter(guarded):
    with pytest.raises(ValueError, match="speculation= was given without a drafter: pass assistant_model=drafter"):
        guarded.generate(make_prompt(5), speculation=SpeculationConfig(), max_new_tokens=8)


def test_caches(target):
    ids = make_prompt(5)
    static = StaticCache(config=target.config, max_cache_len=32)
    with pytest.raises(ValueError, match="A StaticCache of 32 columns knows one length.*static rounds keep"):
        target.generate(ids, **{CACHE_NAME: static}, assistant_model=TableDrafter(64), max_new_tokens=8)
    empty = DynamicCache(config=target.config)
    out = target.generate(ids, **{CACHE_NAME: empty}, assistant_model=TableDrafter(64), max_new_tokens=8)
    assert empty.get_seq_length() == out.shape[1] - 1


def test_quantized_cache(target):
    """Rejected tokens may be in its quantized part already."""
    cache = object.__new__(QuantizedCache)
    cache.layers = []
    with pytest.raises(ValueError, match="LlamaForCausalLM uses QuantizedCache"):
        speculative_generate_with(target, **{CACHE_NAME: cache})


def test_no_cache_at_all(target):
    with pytest.raises(ValueError, match="uses no cache"):
        speculative_generate_with(target, **{CACHE_NAME: None})


def test_empty_prompt(target):
    with pytest.raises(ValueError, match=r"The prompt is empty \(1 rows of 0 tokens\)"):
        speculative_generate_with(target, input_ids=torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"The prompt is empty \(0 rows of 3 tokens\)"):
        target.generate(torch.zeros(0, 3, dtype=torch.long), assistant_model=TableDrafter(64))


def test_missing_drafter(target):
    with pytest.raises(ValueError, match="must be a drafter of this library.*got NoneType"):
        speculative_generate_with(target, drafter=None)
    with pytest.raises(ValueError, match="got LlamaForCausalLM"):
        speculative_generate_with(target, drafter=target)
    with pytest.raises(ValueError, match="got the class DSparkModel"):
        target.generate(make_prompt(3), assistant_model=DSparkModel)


def test_ids_that_are_no_integers(target):
    with pytest.raises(ValueError, match="input_ids must be integers, got torch.float32"):
        target.generate(make_prompt(3).float(), assistant_model=TableDrafter(64), max_new_tokens=4)


def speculative_generate_with(target, **overrides):
    def decode(model, input_ids, **kwargs):
        drafter = overrides.get("drafter", TableDrafter(64))
        kwargs = {"input_ids": input_ids, "drafter": drafter, **kwargs, **overrides}
        return speculative_generate(model, **kwargs)

    return target.generate(make_prompt(5), custom_generate=decode, max_new_tokens=8)


def test_encoder_decoder():
    config = T5Config(vocab_size=64, d_model=16, d_ff=16, d_kv=4, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(ValueError, match="needs a decoder-only target, and T5ForConditionalGeneration is an encoder"):
        T5ForConditionalGeneration(config).generate(make_prompt(5), assistant_model=TableDrafter(64), max_new_tokens=4)


def test_encoder():
    target, ids = make_target("bert"), make_prompt(5)
    with pytest.raises(ValueError, match="BertLMHeadModel is an encoder .is_decoder=False in its config."):
        target.generate(ids, assistant_model=TableDrafter(64), max_new_tokens=4)
    target = make_target("bert", is_decoder=True)
    drafter, plain = greedy_oracle(target, ids, [3, 0, 4], max_new_tokens=16)
    assert target.generate(ids, assistant_model=drafter, max_new_tokens=16, do_sample=False).tolist() == plain.tolist()


def test_target_of_single_tokens():
    sizes = {"num_decoder_layers": 2, "num_decoder_attention_heads": 2, "decoder_ffn_dim": 16, "ngram": 1}
    config = ProphetNetConfig(vocab_size=64, hidden_size=16, is_decoder=True, is_encoder_decoder=False, **sizes)
    target = ProphetNetForCausalLM(config).eval()
    with pytest.raises(ValueError, match="ProphetNetForCausalLM takes one token at a time behind its cache"):
        target.generate(make_prompt(5), assistant_model=TableDrafter(64), max_new_tokens=4)


def test_stateful_target(guarded, monkeypatch):
    monkeypatch.setattr(guarded, "_is_stateful", True)
    with pytest.raises(ValueError, match="LlamaForCausalLM keeps a state that rejected tokens cannot be taken out of"):
        guarded.generate(make_prompt(5), assistant_model=TableDrafter(64), max_new_tokens=4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_checkpointing(family):
    """Llama's layers checkpoint where there are gradients, before transformers 5.24 everywhere; GPT-2 does too."""
    target, ids = make_target(family).train(), make_prompt(5)
    options = {"assistant_model": TableDrafter(64), "max_new_tokens": 12, "do_sample": False}
    target.activation_checkpointing_enable()
    if family == "llama" and CACHE_NAME == "cache":
        assert target.generate(ids, **options).tolist() == target.eval().generate(ids, **options).tolist()
        return
    with pytest.raises(
        ValueError, match="does not keep the prompt.*: it is in training mode with gradient checkpoint"
    ):
        target.generate(ids, **options)
    assert target.eval().generate(ids, **options).shape == (1, 17)


@pytest.mark.parametrize(
    ("family", "field", "value", "refused"),
    [
        ("gemma3_text", "use_bidirectional_attention", True, True),
        ("gemma4_text", "use_bidirectional_attention", "all", True),
        ("gemma4_text", "use_bidirectional_attention", "vision", False),
        ("llama", "is_causal", False, True),
        ("llama", "is_causal", True, False),
    ],
)
def test_tokens_that_see_what_stands_behind_them_are_no_target(family, field, value, refused):
    target = make_target(family, **{field: value})
    ids = make_prompt(6)
    drafter, plain = greedy_oracle(target, ids, [3, 0, 4], max_new_tokens=12)
    options = {"assistant_model": drafter, "max_new_tokens": 12, "do_sample": False}
    if refused:
        with pytest.raises(ValueError, match=f"see what stands behind them .{field}={value!r}.*without a"):
            target.generate(ids, **options)
    else:
        assert target.generate(ids, **options).tolist() == plain.tolist()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"use_cache": False}, "use_cache=False is not supported together with a drafter: set it to True"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5 lets LlamaForCausalLM read a second text in turns"),
    ],
)
def test_frequencies_that_depend_on_what_was_read_before(option, message):
    rope = {"rope_type": "dynamic", "rope_theta": 1e2, "factor": 64.0}
    target = make_target("llama", max_position_embeddings=32, rope_parameters=rope)
    ids = make_prompt(6)
    with pytest.raises(ValueError, match=message):
        target.generate(ids, assistant_model=TableDrafter(64), max_new_tokens=4, do_sample=False, **option)


def test_use_cache_false_is_overruled(target):
    """As in transformers' assisted decoding: drafts are verified behind a cache. The tokens are the same."""
    ids = make_prompt(5)
    config = GenerationConfig(use_cache=False, max_new_tokens=12, do_sample=False)
    drafter, plain = greedy_oracle(target, ids, [3, 0, 4], max_new_tokens=12)
    assert target.generate(ids, generation_config=config).tolist() == plain.tolist()
    out = target.generate(ids, generation_config=config, assistant_model=drafter)
    assert out.tolist() == plain.tolist() and max(drafter.last_stats.accepted_lens) == 4
    assert config.use_cache is False
    with pytest.raises(ValueError, match="use_cache=False is not supported together with a drafter: set it to True"):
        target.generate(ids, generation_config=config, custom_generate=speculative_generate, drafter=drafter)


class OldName(LlamaForCausalLM):
    """As the code of a repository that was written before transformers 5.24."""

    def forward(self, input_ids=None, past_key_values=None, **kwargs):
        return super().forward(input_ids, **{CACHE_NAME: past_key_values}, **kwargs)


class OldNameAlone(LlamaForCausalLM):
    """The same without room for other arguments."""

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None,
        output_hidden_states=None, return_dict=None, logits_to_keep=0,
    ):  # fmt: skip
        raise AssertionError("the target ran")


class HiddenOldName(LlamaForCausalLM):
    """The same behind a signature that tells nothing."""

    def forward(self, *args, **kwargs):
        kwargs.pop(CACHE_NAME)
        return super().forward(*args, **kwargs)


@pytest.mark.skipif(CACHE_NAME == "past_key_values", reason="the old name is the name")
@pytest.mark.parametrize(
    ("target_class", "message"),
    [
        (OldName, "takes its cache as `past_key_values`, but this release of transformers hands it over as `cache`"),
        (OldNameAlone, "takes its cache as `past_key_values`.*Rename the parameter in the model's code"),
        (HiddenOldName, "does not keep the prompt in the cache that it is given.*; generate without a drafter"),
    ],
)
def test_targets_with_the_old_name_of_the_cache(target_class, message):
    target = target_class(make_target().config).eval()
    with pytest.raises(ValueError, match=f"{target_class.__name__} {message}"):
        target.generate(make_prompt(5), assistant_model=TableDrafter(64), max_new_tokens=4)


def test_target_with_inputs_of_its_own(monkeypatch):
    """As Mllama, whose mask over image tiles grows with every token."""

    class OwnInputs(LlamaForCausalLM):
        def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **kwargs):
            return super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)

        def forward(self, *args, **kwargs):
            raise AssertionError("the target ran")

    target = OwnInputs(make_target().config)
    with pytest.raises(ValueError, match="OwnInputs changes its inputs from token to token in a way of its own"):
        target.generate(make_prompt(5), assistant_model=TableDrafter(64), max_new_tokens=4)


def test_drafter_of_another_target(guarded):
    drafter = DSparkModel.from_target(make_target(vocab_size=80), block_size=4, markov_rank=8, num_hidden_layers=1)
    with pytest.raises(ValueError, match="vocabulary differs.*80 and 64"):
        guarded.generate(make_prompt(5), assistant_model=drafter, max_new_tokens=4)


def test_check_target_can_be_switched_off(target):
    drafter = DSparkModel.from_target(make_target(seed=9), block_size=4, markov_rank=8, num_hidden_layers=1)
    drafter.config.target_name_or_path = "someone/else"
    ids = make_prompt(5)
    with pytest.raises(ValueError, match="made for someone/else"):
        target.generate(ids, assistant_model=drafter, max_new_tokens=9, do_sample=False)
    speculation = SpeculationConfig(check_target=False)
    out = target.generate(ids, assistant_model=drafter, speculation=speculation, max_new_tokens=9, do_sample=False)
    assert out.tolist() == target.generate(ids, max_new_tokens=9, do_sample=False).tolist()


def test_target_without_a_cache():
    target = make_target("openai-gpt")
    with pytest.raises(ValueError, match="OpenAIGPTLMHeadModel does not keep the prompt in the cache"):
        target.generate(make_prompt(5), assistant_model=TableDrafter(64), max_new_tokens=4)


def test_target_without_hidden_states(monkeypatch):
    target = make_target("bloom")
    forward = target.forward

    def without(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        outputs.hidden_states = None
        return outputs

    monkeypatch.setattr(target, "forward", without)
    with pytest.raises(ValueError, match="BloomForCausalLM returns no hidden states"):
        target.generate(make_prompt(5), assistant_model=TableDrafter(64), max_new_tokens=4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_draft_len": 0}, "max_draft_len must be a positive int, or None for all slots, got 0"),
        ({"num_candidates": 0}, "num_candidates must be a positive int, or None for the whole vocabulary, got 0"),
        ({"num_candidates": 1.5}, "num_candidates must be a positive int"),
        ({"verification": "blocks"}, 'verification must be "block" or "token", got \'blocks\''),
        ({"max_draft_len": 2.5}, "max_draft_len must be a positive int"),
        ({"max_draft_len": True}, "max_draft_len must be a positive int"),
        (
            {"confidence_threshold": 1.0},
            "confidence_threshold must be a number from 0 up to but not including 1, got 1.0",
        ),
        ({"confidence_threshold": -0.1}, "confidence_threshold must be a number"),
        ({"confidence_threshold": "high"}, "confidence_threshold must be a number"),
        ({"prompt_lookup": 4}, "prompt_lookup must be a PromptLookup, True, False or None, got 4"),
        (
            {"policy": None},
            "policy must be one of auto, lagged, early_stop, threshold, fixed, or a PrefixScheduler .*, got None",
        ),
        ({"seed": 1.5}, "seed must be an int from 0 to 2..63 - 1, or None, got 1.5"),
        ({"seed": 2**63}, "seed must be an int from 0 to"),
        ({"check_target": "yes"}, r"check_target must be one of \[True, False\], got 'yes'"),
        ({"measure_time": 1}, r"measure_time must be one of \[True, False, None\], got 1"),
    ],
)
def test_speculation_config(fields, message):
    with pytest.raises(ValueError, match=message):
        SpeculationConfig(**fields)


def test_an_option_that_a_checkpoint_brings_is_said_to_come_from_there(target, monkeypatch):
    monkeypatch.setattr(target.generation_config, "num_assistant_tokens", 5)
    with pytest.raises(ValueError, match="=5 is not supported.*It stands in model.generation_config"):
        target.generate(make_prompt(4), assistant_model=PromptLookup())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="or generate without a drafter.$"):
        target.generate(make_prompt(4), assistant_model=PromptLookup(), num_assistant_tokens=5)
