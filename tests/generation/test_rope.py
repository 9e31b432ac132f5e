"""Targets whose rotary frequencies depend on how long a sequence is by now: blocks are what single steps are.

Their lengths change from 32 on. Plain `generate()` runs on a copy, because `dynamic` frequencies remember lengths.
"""

import copy
from contextlib import nullcontext

import pytest
import torch
from fake_drafters import OracleDrafter, TableDrafter
from tiny_targets import make_prompt, make_target, padded_prompts
from tiny_vlms import SPECIAL, join_rows, make_image_prompt, make_vlm
from transformers import DynamicCache, Phi4MultimodalConfig, Phi4MultimodalForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dspark_hf import DSparkModel, PromptLookup, SpeculationConfig
from dspark_hf.generation.target.rotary import RotaryStepper
from dspark_hf.modeling.cache_name import CACHE_NAME

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e2, "factor": 64.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
        "partial_rotary_factor": 1.0, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]}  # fmt: skip
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}
MSCALES = {"short_mscale": 1.1, "long_mscale": 1.4}
LAYER_TYPES = ["sliding_attention", "full_attention"] * 2
FIELDS = {
    "dynamic": ("llama", {"max_position_embeddings": 32, "rope_parameters": DYNAMIC}),
    "longrope": ("llama", {"rope_parameters": LONG}),
    "window": ("mistral", {"max_position_embeddings": 32, "rope_parameters": DYNAMIC}),
    "layer types": (
        "gemma3_text",
        {
            "max_position_embeddings": 32,
            "layer_types": LAYER_TYPES,
            "rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": DEFAULT},
        },
    ),
    "two longropes": (
        "gemma3_text",
        {
            "layer_types": LAYER_TYPES,
            "rope_parameters": {
                "full_attention": LONG,
                "sliding_attention": LONG | {"original_max_position_embeddings": 40},
            },
        },
    ),
    "replay": (
        "qwen3_5_text",
        {"max_position_embeddings": 32, "rope_parameters": DYNAMIC | {"partial_rotary_factor": 1.0}},
    ),
    "phi3": ("phi3", {"original_max_position_embeddings": 32, "rope_parameters": LONG}),
    "phimoe": ("phimoe", {"original_max_position_embeddings": 32, "rope_parameters": LONG | MSCALES}),
}
CORE = ("dynamic", "longrope", "phi3")
KINDS = [kind if kind in CORE else pytest.param(kind, marks=pytest.mark.slow) for kind in FIELDS]


def make(kind, **overrides):
    family, fields = FIELDS[kind]
    return make_target(family, **copy.deepcopy(fields), **overrides)


@pytest.fixture(scope="module", params=KINDS)
def fresh(request):
    return make(request.param)


def generate(fresh, ids, **kwargs):
    """Ids of plain `generate()`, and the model that it left."""
    target = copy.deepcopy(fresh)
    return target.generate(ids, **{"max_new_tokens": 30, "do_sample": False, **kwargs}), target


def rotary_state(target):
    return {
        (name, key): value
        for name, module in target.named_modules()
        if hasattr(module, "rope_type")
        for key, value in {**vars(module), **dict(module.named_buffers())}.items()
        if key.endswith("inv_freq") or key.endswith("max_seq_len_cached")
    }


def assert_same_state(ours, theirs):
    ours, theirs = rotary_state(ours), rotary_state(theirs)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(value)), key


def assert_same(fresh, ids, pattern=(4, 0, 2, 1, 3), uneven=False, speculation=None, drafter=None, **kwargs):
    plain, theirs = generate(fresh, ids, **kwargs)
    target = copy.deepcopy(fresh)
    drafter = OracleDrafter(plain.tolist(), pattern, 64, uneven) if drafter is None else drafter
    options = {"max_new_tokens": 30, "do_sample": False, **kwargs}
    out = target.generate(ids, assistant_model=drafter, speculation=speculation, **options)
    assert out.tolist() == plain.tolist()
    assert_same_state(target, theirs)
    return drafter


@pytest.mark.parametrize("length", [5, 20, 31, 32, 33, 40])
def test_across_the_original_length(fresh, length):
    drafter = assert_same(fresh, make_prompt(length))
    assert drafter.last_stats.tau > 2 and drafter.anchors_were_right


@pytest.mark.parametrize("pattern", [[4], [0], [3, 0]])
def test_lengths_of_blocks(fresh, pattern):
    drafter = assert_same(fresh, make_prompt(20), pattern)
    assert drafter.last_stats.tau > (1 if pattern == [0] else 2) - 0.01


def test_other_ways_to_draft(fresh):
    ids = make_prompt(6).repeat(1, 4)
    assert_same(fresh, ids, speculation=SpeculationConfig(max_draft_len=1))
    assert_same(fresh, ids, drafter=PromptLookup())
    target = copy.deepcopy(fresh)
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    plain, _ = generate(fresh, ids)
    assert target.generate(ids, assistant_model=drafter, max_new_tokens=30, do_sample=False).tolist() == plain.tolist()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [(36, 20, 28), (20, 36), (20, 14, 8)])
def test_batches(fresh, side, lengths):
    ids, mask = padded_prompts(lengths, side)
    drafter = assert_same(fresh, ids, uneven=True, attention_mask=mask)
    # What rows far apart have in common is what each round takes.
    emitted = drafter.last_stats.emitted_lens
    assert emitted == [n for n in emitted[:: len(lengths)] for _ in lengths]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_a_single_row(fresh, side):
    """Behind padding at the right, positions start anew: they may be lower than the prompt's."""
    ids, mask = padded_prompts((40, 34), side)
    assert_same(fresh, ids[1:], attention_mask=mask[1:])


@pytest.mark.parametrize("chunk_size", [7, 24])
def test_chunks(fresh, chunk_size):
    for length in (20, 40):
        assert_same(fresh, make_prompt(length), prefill_chunk_size=chunk_size)


def test_calls_after_one_another(fresh):
    """The frequencies of a short prompt after a long one, and the other way round, are those of plain calls."""
    ours, theirs = copy.deepcopy(fresh), copy.deepcopy(fresh)
    for length, max_new_tokens in ((40, 30), (34, 20), (8, 12), (34, 50), (25, 60)):
        kwargs = {"max_new_tokens": max_new_tokens, "do_sample": False}
        plain = theirs.generate(make_prompt(length), **kwargs)
        drafter = OracleDrafter(plain.tolist(), [4, 1, 0], 64)
        assert ours.generate(make_prompt(length), assistant_model=drafter, **kwargs).tolist() == plain.tolist()
        assert_same_state(ours, theirs)


@pytest.mark.parametrize("num_new", [(8, 20), (20, 20)])
def test_turns(fresh, num_new):
    """A second turn goes on with the cache, across the original length or beyond."""
    ours, theirs = copy.deepcopy(fresh), copy.deepcopy(fresh)
    caches = [DynamicCache(config=fresh.config) for _ in range(2)]
    ids = make_prompt(16)
    for num in num_new:
        kwargs = {"max_new_tokens": num, "do_sample": False}
        # As of plain generate(): what Phi-3 puts in the place of a cache is only in the result.
        result = theirs.generate(ids, **{CACHE_NAME: caches[0]}, return_dict_in_generate=True, **kwargs)
        plain, caches[0] = result.sequences, result[CACHE_NAME]
        drafter = OracleDrafter(plain.tolist(), [4, 1, 0], 64)
        out = ours.generate(ids, **{CACHE_NAME: caches[1]}, assistant_model=drafter, **kwargs)
        assert out.tolist() == plain.tolist()
        assert_same_state(ours, theirs)
        for mine, other in zip(caches[1].layers, caches[0].layers, strict=True):
            if getattr(other, "keys", None) is not None:
                torch.testing.assert_close(mine.keys, other.keys, atol=1e-3, rtol=1e-2)
        ids = torch.cat([plain, make_prompt(9, seed=1)], 1)


def test_one_wrong_step_shows(monkeypatch):
    """Blocks as they come, without telling columns apart, are not what single steps are."""
    monkeypatch.setattr(RotaryStepper, "in_steps", lambda self: nullcontext())
    for kind in ("dynamic", "longrope", "layer types", "two longropes", "replay"):
        with pytest.raises(AssertionError):
            for length in (20, 26, 30):
                assert_same(make(kind), make_prompt(length), [4])


@pytest.mark.parametrize("length", [20, 31, 33])
def test_states_of_the_pass_that_starts_anew(length):
    """Phi-3 computes all tokens anew where its scaling changes, and hidden states of that step are those of all."""
    fresh = make("phi3", attn_implementation="eager")
    kwargs = {"return_dict_in_generate": True, "output_hidden_states": True, "output_attentions": True,
              "max_new_tokens": 30, "do_sample": False}  # fmt: skip
    plain, _ = generate(fresh, make_prompt(length), **kwargs)
    drafter = OracleDrafter(plain.sequences.tolist(), [4, 1, 0], 64)
    out, _ = generate(fresh, make_prompt(length), assistant_model=drafter, **kwargs)
    assert out.sequences.tolist() == plain.sequences.tolist()
    for name in ("hidden_states", "attentions"):
        for mine, other in zip(out[name], plain[name], strict=True):
            torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-3)


def test_interrupted_in_the_pass_that_starts_anew():
    target, cache = make("phi3"), DynamicCache()
    num_layers = []

    def stop(*args):
        num_layers.append(cache.get_seq_length())
        if num_layers[-1] == 0 and len(num_layers) > 1:
            raise KeyboardInterrupt

    target.model.layers[0].register_forward_pre_hook(stop)
    kwargs = {"max_new_tokens": 30, "do_sample": False}
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="interrupted in the middle of a pass"):
        target.generate(make_prompt(20), **{CACHE_NAME: cache}, assistant_model=TableDrafter(64), **kwargs)
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("rope", [
    DEFAULT,
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32},
    {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32,
     "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    LONG | {"original_max_position_embeddings": 58},
    DYNAMIC,
], ids=lambda rope: rope["rope_type"])  # fmt: skip
def test_frequencies_that_stay_the_same_keep_no_rows_in_step(rope):
    """So do those that change beyond what is asked for."""
    fresh = make_target("llama", max_position_embeddings=58, rope_parameters=dict(rope))
    ids, mask = padded_prompts((28, 20), "left")
    for max_new_tokens in (30, 31):
        drafter = assert_same(fresh, ids, uneven=True, attention_mask=mask, max_new_tokens=max_new_tokens)
        emitted = drafter.last_stats.emitted_lens
        is_in_step = emitted == [n for n in emitted[::2] for _ in range(2)]
        changes = rope["rope_type"] in ("dynamic", "longrope") and max_new_tokens == 31
        assert is_in_step == changes


def test_cache_that_is_dropped_in_the_middle_of_a_prompt():
    """Of a chunk, which in transformers is then computed as if nothing stood before it."""
    target, cache = make("phi3"), DynamicCache()
    kwargs = {CACHE_NAME: cache, "assistant_model": TableDrafter(64), "max_new_tokens": 2}
    target.generate(make_prompt(9), **kwargs)
    with pytest.raises(ValueError, match="dropped its cache at 50 tokens, but does not compute all of them anew"):
        target.generate(make_prompt(60), prefill_chunk_size=40, **kwargs)


def test_phi4_multimodal_forgets_its_tokens():
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14, "crop_size": 28}  # fmt: skip
    audio = {"hidden_size": 16, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2,
             "nemo_conv_channels": 8, "ext_pw_out_channel": 16}  # fmt: skip
    config = Phi4MultimodalConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, original_max_position_embeddings=32, bos_token_id=None,
        eos_token_id=None, pad_token_id=0, initializer_range=0.5, sliding_window=None, rope_parameters=dict(LONG),
        vision_config=vision, audio_config=audio,
    )  # fmt: skip
    fresh = Phi4MultimodalForCausalLM(config).eval()
    with pytest.raises(ValueError, match="drops its cache at 32 tokens .* set max_length to at most 33"):
        fresh.generate(make_prompt(20), assistant_model=TableDrafter(64), max_length=34)
    assert_same(fresh, make_prompt(20), max_new_tokens=13)
    assert_same(fresh, make_prompt(40))


def test_a_rope_type_of_ones_own(monkeypatch):
    """Whatever calls itself dynamic is asked again at each length."""

    def frequencies(config, device=None, seq_len=None, layer_type=None):
        length = torch.as_tensor(32 if seq_len is None else seq_len)
        return torch.arange(1, 5, device=device) / length, 1.0

    monkeypatch.setitem(ROPE_INIT_FUNCTIONS, "my_dynamic", frequencies)
    rope = {"rope_type": "my_dynamic", "rope_theta": 1e4}
    fresh = make_target("llama", max_position_embeddings=32, rope_parameters=rope)
    for length in (20, 40):
        assert assert_same(fresh, make_prompt(length)).last_stats.tau > 2


@pytest.mark.parametrize("family", ["qwen2_5_vl", pytest.param("gemma3", marks=pytest.mark.slow),
                                    pytest.param("qwen3_vl", marks=pytest.mark.slow)])  # fmt: skip
def test_images(family):
    sections = {"mrope_section": [2, 1, 1]} if family != "gemma3" else {}
    for rope in (DYNAMIC, LONG):
        rope = {**rope, **sections}
        rope = rope if sections else {"full_attention": rope, "sliding_attention": DEFAULT}
        fresh = make_vlm(family, max_position_embeddings=32, rope_parameters=rope)
        rows = [make_image_prompt(family, num_before=before) for before in (5, 20)]
        for inputs in (rows[0], rows[1], join_rows(rows)):
            assert_same(fresh, inputs.pop("input_ids"), suppress_tokens=SPECIAL, **inputs)


def test_sampling_across_the_original_length(fresh):
    """What is drawn from at each step is what plain `generate()` draws from behind the same tokens."""
    ids = make_prompt(28)
    target = copy.deepcopy(fresh)
    out = target.generate(
        ids, assistant_model=TableDrafter(64), max_new_tokens=12, do_sample=True, return_dict_in_generate=True,
        output_logits=True, speculation=SpeculationConfig(seed=0),
    )  # fmt: skip
    # The logits at each step are those of plain generate() that is made to take the same tokens.
    texts = out.sequences[0].tolist()
    plain, _ = generate(
        fresh, ids, max_new_tokens=12, return_dict_in_generate=True, output_logits=True,
        prefix_allowed_tokens_fn=lambda row, prefix: [texts[len(prefix)]],
    )  # fmt: skip
    assert plain.sequences.tolist() == out.sequences.tolist()
    for mine, other in zip(out.logits, plain.logits, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-3)


def test_compiled_with_the_rotary_modules_inside():
    fresh = make("dynamic", num_hidden_layers=1)
    fresh.model.forward = torch.compile(fresh.model.forward, backend="eager")
    with pytest.raises(ValueError, match=r"LlamaForCausalLM \(dynamic\) depend on how long a pass is.*is compiled"):
        fresh.generate(make_prompt(20), assistant_model=TableDrafter(64), max_new_tokens=20)


@pytest.mark.slow
def test_compiled_layers():
    fresh = make("longrope", num_hidden_layers=2)
    kwargs = {"max_new_tokens": 10, "do_sample": False}
    plain = fresh.generate(make_prompt(28), **kwargs)
    for layer in fresh.model.layers:
        layer.forward = torch.compile(layer.forward, backend="eager")
    drafter = OracleDrafter(plain.tolist(), [3], 64, num_slots=3, taps=(0,))
    assert fresh.generate(make_prompt(28), assistant_model=drafter, **kwargs).tolist() == plain.tolist()


def test_positions_of_groups():
    rope = {"main": {**DYNAMIC, "partial_rotary_factor": 0.5}, "compress": {**DEFAULT, "partial_rotary_factor": 0.5}}
    target = make_target("deepseek_v4", max_position_embeddings=32, rope_parameters=rope)
    with pytest.raises(ValueError, match="gives positions to whole groups of tokens"):
        target.generate(make_prompt(20), assistant_model=TableDrafter(64), max_new_tokens=20)


@pytest.mark.parametrize(
    ("family", "compiled"),
    [("llama", "model"), *(pytest.param(*case, marks=pytest.mark.slow)
                           for case in (("llama", "layers"), ("mistral", "model"), ("mistral", "layers")))],
)  # fmt: skip
def test_compiled_by_the_caller(family, compiled):
    """`forward = torch.compile(forward)`, with padding or a window."""
    torch._dynamo.reset()
    target = make_target(family, num_hidden_layers=1)
    ids, mask = padded_prompts((12, 8), "left")
    kwargs = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    plain = target.generate(ids, **kwargs)
    for module in [target] if compiled == "model" else target.model.layers:
        module.forward = torch.compile(module.forward, backend="eager")
    drafter = OracleDrafter(plain.tolist(), [3], 64, num_slots=3, taps=(0,))
    assert target.generate(ids, assistant_model=drafter, **kwargs).tolist() == plain.tolist()
    with pytest.raises(ValueError, match="compile=True together with a drafter .* compiled already"):
        target.generate(ids, assistant_model=drafter, speculation=SpeculationConfig(compile=True), **kwargs)


def test_window_of_a_single_token():
    target = make_target("mistral", sliding_window=1)
    with pytest.raises(ValueError, match="MistralForCausalLM has a sliding window of 1"):
        target.generate(make_prompt(5), assistant_model=TableDrafter(64), max_new_tokens=4)
