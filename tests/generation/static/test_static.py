"""Rounds of fixed shapes: the same tokens as plain `generate()`, one host read a round, and who cannot have them."""

import pytest
import torch
from distributions import exact_joint, p_value, sample_joint
from fake_drafters import TableDrafter
from scripted_drafters import scripted
from tiny_targets import MORE_FAMILIES, VOCAB_SIZE, make_prompt, make_target, padded_prompts
from transformers import LogitsProcessor, LogitsProcessorList, StaticCache, StoppingCriteria, StoppingCriteriaList

from dspark_hf import DFlashModel, DSparkModel, Eagle3Model, SpeculationConfig
from dspark_hf.generation.static import runner
from dspark_hf.modeling.cache_name import CACHE_NAME

STATIC = {"cache_implementation": "static", "do_sample": False}
FIXED = SpeculationConfig(policy="fixed")


def make_drafter(target, kind=DSparkModel, **fields):
    torch.manual_seed(1)
    vocab_size = target.config.vocab_size
    own = {"ttt_length": 4} if kind is Eagle3Model else {"mask_token_id": vocab_size - 1, "block_size": 4}
    own |= {"markov_rank": 8} if kind is DSparkModel else {}
    fields = {"target_layer_ids": [0, 2]} | own | fields
    return kind.from_target(target, **fields)


@pytest.mark.parametrize("length", [1, 20])
def test_every_accepted_length(any_target, length):
    ids = make_prompt(length)
    drafter, plain = scripted(any_target, ids, range(6), 64)
    out = any_target.generate(ids, assistant_model=drafter, speculation=FIXED, max_new_tokens=64, **STATIC)
    assert out.tolist() == plain.tolist()
    stats = drafter.last_stats
    assert stats.round_kind == "static" and stats.why_ragged is None
    assert set(stats.accepted_lens) == set(range(6))
    full = [i for i, verified in enumerate(stats.verified_lens) if verified == 5]
    assert all(stats.accepted_lens[i] == i % 6 for i in full)
    # The first token, the first drafts, and each round.
    assert stats.host_reads == stats.rounds + 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_uneven_rows(any_target, side):
    ids, mask = padded_prompts([5, 14, 2, 9], side)
    drafter, plain = scripted(any_target, ids, [0, 5, 2, 1, 3, 5], 40, mask)
    options = {"attention_mask": mask, "assistant_model": drafter, "speculation": FIXED, "max_new_tokens": 40}
    assert any_target.generate(ids, **options, **STATIC).tolist() == plain.tolist()
    stats = drafter.last_stats
    assert stats.tau > 2 and stats.host_reads == stats.rounds + 2


@pytest.mark.parametrize("family", [pytest.param(name, marks=pytest.mark.slow) for name in MORE_FAMILIES])
def test_more_families(family):
    target = make_target(family, **MORE_FAMILIES[family])
    ids, mask = padded_prompts([5, 14, 2, 9])
    drafter, plain = scripted(target, ids, [0, 5, 2, 1, 3], 24, mask)
    options = {"attention_mask": mask, "assistant_model": drafter, "speculation": FIXED, "max_new_tokens": 24}
    assert target.generate(ids, **options, **STATIC).tolist() == plain.tolist()


@pytest.mark.parametrize("policy", ["auto", "threshold", "early_stop", "lagged"])
def test_schedules_and_pauses(target, policy):
    ids, mask = padded_prompts([5, 14, 2])
    drafter, plain = scripted(target, ids, [0] * 40 + [5] * 40, 90, mask)
    speculation = SpeculationConfig(policy=policy, confidence_threshold=0.3 if policy == "threshold" else 0.0)
    options = {"attention_mask": mask, "assistant_model": drafter, "max_new_tokens": 90, "speculation": speculation}
    assert target.generate(ids, **options, **STATIC).tolist() == plain.tolist()
    stats = drafter.last_stats
    # Only where a pause has ended are drafts read on their own.
    assert stats.host_reads <= stats.rounds + 2 + stats.paused_rounds
    if policy == "auto":
        assert stats.paused_rounds > 0
        assert any("+draft" not in bucket for bucket in stats.buckets)


def test_eos_ends_rows_to_the_token(target):
    ids, mask = padded_prompts([5, 14, 2, 9, 7])
    drafter, plain = scripted(target, ids, [5, 3, 0], 60, mask)
    eos = sorted({row[ids.shape[1] + 7 + 9 * index] for index, row in enumerate(plain.tolist())})
    options = {"attention_mask": mask, "max_new_tokens": 60, "eos_token_id": eos}
    expected = target.generate(ids, **options, do_sample=False)
    out = target.generate(ids, assistant_model=drafter, speculation=FIXED, **options, **STATIC)
    assert out.tolist() == expected.tolist()
    # Rows leave one after the other, and the last are alone in a smaller bucket.
    assert len({bucket.split("x")[0] for bucket in drafter.last_stats.buckets}) > 1


@pytest.mark.parametrize("batch_size", [3, 33, 64])
def test_batches(target, batch_size):
    ids, mask = padded_prompts([1 + 5 * row % 17 for row in range(batch_size)])
    drafter, plain = scripted(target, ids, [0, 5, 2, 1, 3], 16, mask)
    options = {"attention_mask": mask, "max_new_tokens": 16, "eos_token_id": plain[0, -10].item()}
    expected = target.generate(ids, **options, do_sample=False)
    out = target.generate(ids, assistant_model=drafter, speculation=FIXED, **options, **STATIC)
    assert out.tolist() == expected.tolist()
    stats = drafter.last_stats
    assert stats.round_kind == "static" and stats.host_reads == stats.rounds + 2
    sizes = {int(bucket.split("x")[0]) for bucket in stats.buckets}
    assert max(sizes) == 1 << (batch_size - 1).bit_length()


@pytest.mark.parametrize("num_new", range(2, 12))
def test_a_bucket_wider_than_the_room_that_is_left(target, num_new):
    ids = make_prompt(5)
    drafter, plain = scripted(target, ids, [7, 0, 7], num_new, block_size=7)
    out = target.generate(ids, assistant_model=drafter, speculation=FIXED, max_new_tokens=num_new, **STATIC)
    assert out.tolist() == plain.tolist()


def test_it_drafts_what_ragged_rounds_draft(target):
    kinds = (DSparkModel, {}), (DFlashModel, {}), (DSparkModel, {"draft_vocab_size": 40}), (Eagle3Model, {})
    for kind, fields in kinds:
        drafter, drafts = make_drafter(target, kind, **fields), []
        ids, mask = padded_prompts([5, 14, 2, 9])
        for static in ({}, STATIC):
            speculation = SpeculationConfig(policy="fixed", record_drafts=True)
            options = {"attention_mask": mask, "assistant_model": drafter, "speculation": speculation}
            target.generate(ids, max_new_tokens=24, **options, **static | {"do_sample": False})
            stats = drafter.last_stats
            drafts.append(sorted(zip(stats.row_ids, stats.draft_ids, stats.accepted_lens, strict=True)))
        assert drafts[0] == drafts[1]


def test_buffers_live_on_and_grow(target):
    drafter, addresses = make_drafter(target), []
    for length, budget in ((7, 20), (30, 50), (9, 10), (7, 300), (40, 20)):
        ids = make_prompt(length)
        out = target.generate(ids, assistant_model=drafter, max_new_tokens=budget, **STATIC)
        assert out.tolist() == target.generate(ids, max_new_tokens=budget, do_sample=False).tolist()
        addresses.append([tensor.data_ptr() for tensor in runner._kept[target].buffers.tensors()])
    assert addresses[0] == addresses[1] == addresses[2] and addresses[3] == addresses[4] != addresses[0]
    runner.release(target)
    assert target not in runner._kept


def test_the_generation_config_asks_for_it(target, monkeypatch):
    drafter, ids = make_drafter(target), make_prompt(5)
    monkeypatch.setattr(target.generation_config, "cache_implementation", "static")
    out = target.generate(ids, assistant_model=drafter, max_new_tokens=20, do_sample=False)
    assert drafter.last_stats.round_kind == "static"
    assert out.tolist() == target.generate(ids, max_new_tokens=20, do_sample=False).tolist()


SHAPED = {"temperature": 0.7, "top_k": 4, "top_p": 0.9, "min_p": 0.05}


@pytest.mark.parametrize(
    ("verification", "options"),
    [
        ("block", {}),
        ("token", SHAPED),
        pytest.param("token", {}, marks=pytest.mark.slow),
        pytest.param("block", SHAPED, marks=pytest.mark.slow),
    ],
)
def test_sampled_tokens_follow_the_target(verification, options):
    target = make_target(vocab_size=6, initializer_range=0.3)
    drafter = make_drafter(target)
    ids = make_prompt(3, vocab_size=6)
    options = {"top_k": 0} | options
    joint = exact_joint(target, ids, 3, do_sample=True, **options)
    speculation = SpeculationConfig(verification=verification, policy="fixed", num_candidates=4)
    counts, accepted = sample_joint(
        target, drafter, ids.expand(256, -1), 3, 4096, speculation,
        do_sample=True, cache_implementation="static", max_new_tokens=4, **options,
    )  # fmt: skip
    assert drafter.last_stats.round_kind == "static"
    assert sum(accepted) > 0.2 * len(accepted)
    assert p_value(counts, joint) > 1e-3


def test_a_seed_repeats(target):
    drafter, ids = make_drafter(target), make_prompt(5, batch_size=3)
    options = {"max_new_tokens": 20, "do_sample": True, "cache_implementation": "static", "assistant_model": drafter}
    texts = [target.generate(ids, speculation=SpeculationConfig(seed=seed), **options).tolist() for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


class Counting(StoppingCriteria):
    def __init__(self):
        self.lens = []

    def __call__(self, input_ids, scores, **kwargs):
        self.lens.append(input_ids.shape[1])
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Custom(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


class Streamer:
    def __init__(self):
        self.tokens = []

    def put(self, ids):
        self.tokens += ids.flatten().tolist()

    def end(self):
        pass


@pytest.mark.parametrize(
    ("batch_size", "options", "why"),
    [
        (1, {"stopping_criteria": StoppingCriteriaList([Counting()])}, None),
        (2, {"stopping_criteria": StoppingCriteriaList([Counting()])}, "a stopping criterion sees the whole batch"),
        (2, {"max_time": 1e3, "eos_token_id": 5}, None),
        (1, {"logits_processor": LogitsProcessorList([Custom()])}, "Custom may look at more than the scores"),
        (1, {"repetition_penalty": 1.3}, "RepetitionPenaltyLogitsProcessor may look"),
    ],
)
def test_what_watches_takes_what_it_needs_and_is_named(target, batch_size, options, why):
    drafter, ids = make_drafter(target), make_prompt(5, batch_size=batch_size)
    expected = target.generate(ids, max_new_tokens=20, do_sample=False, **options)
    out = target.generate(ids, assistant_model=drafter, max_new_tokens=20, **options, **STATIC)
    assert out.tolist() == expected.tolist()
    stats = drafter.last_stats
    if why is None:
        assert stats.round_kind == "static" and stats.why_ragged is None
        assert stats.host_reads <= stats.rounds + 2 + stats.paused_rounds
    else:
        assert stats.round_kind == "ragged" and stats.why_ragged.startswith(why)
        # Each token in turn waits for its verdict where a processor is unknown.
        assert stats.host_reads > stats.rounds


class RoundStreamer(Streamer):
    def __init__(self):
        super().__init__()
        self.rounds = []

    def put_speculative(self, ids, accepted_len):
        self.rounds.append((len(ids), accepted_len))
        self.put(ids)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("kind", [Streamer, RoundStreamer])
def test_a_streamer_gets_every_token_once(target, kind, batch_size):
    ids, streamer, expected = make_prompt(5, batch_size=batch_size), kind(), Streamer()
    drafter, plain = scripted(target, ids, [2, 0, 5], 20)
    target.generate(ids, max_new_tokens=20, do_sample=False, streamer=expected)
    options = {"assistant_model": drafter, "speculation": FIXED, "max_new_tokens": 20, "streamer": streamer}
    assert target.generate(ids, **options, **STATIC).tolist() == plain.tolist()
    assert streamer.tokens == expected.tokens
    stats = drafter.last_stats
    if batch_size == 1:
        assert stats.round_kind == "static"
    else:
        assert stats.round_kind == "ragged" and stats.why_ragged.startswith("a streamer takes the tokens of several")
    if kind is RoundStreamer and batch_size == 1:
        assert [num for num, _ in streamer.rounds[1:]] == stats.emitted_lens


def must_not_run(*args, **kwargs):
    raise AssertionError("the target ran")


@pytest.mark.parametrize(
    ("family", "kind", "options", "message"),
    [
        ("llama", "dspark", {"return_dict_in_generate": True}, "a cache that someone gets .return_dict_in_generate"),
        ("llama", "table", {}, "TableDrafter, which is none of this library's drafters"),
        ("qwen3_5_text", "dspark", {}, "Qwen3_5ForCausalLM, whose cache holds more than keys and values"),
        ("deepseek_v4", "dspark", {}, "DeepseekV4ForCausalLM, whose cache holds more than keys and values"),
    ],
)
def test_what_cannot_be_static(family, kind, options, message):
    target = make_target(family)
    drafter = {
        "dspark": lambda: (
            make_drafter(make_target()).bind(target, check_name=False)
            if family == "llama"
            else make_drafter(make_target())
        ),
        "table": lambda: TableDrafter(VOCAB_SIZE),
    }[kind]()
    target.forward = must_not_run
    options = {"max_new_tokens": 8} | STATIC | options
    with pytest.raises(ValueError, match=f"cache_implementation='static' together with a drafter .*{message}"):
        target.generate(make_prompt(5), assistant_model=drafter, **options)


def attending_in_chunks(target):
    target.config.attention_chunk_size = 8


def of_another_attention(target):
    target.config._attn_implementation = "flex_attention"


def without_a_mask(target):
    target.forward = lambda input_ids, position_ids=None, cache=None, past_key_values=None: must_not_run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attending_in_chunks, "cache of LlamaForCausalLM slides by 8 tokens, and its masks do not"),
        (of_another_attention, "with another attention than sdpa or eager .* cannot be masked"),
        (without_a_mask, "LlamaForCausalLM, which takes no attention_mask"),
    ],
)
def test_targets_that_cannot_be_static(change, message):
    target = make_target()
    drafter = make_drafter(target)
    target.forward = must_not_run
    change(target)
    with pytest.raises(ValueError, match=message):
        target.generate(make_prompt(5), assistant_model=drafter, max_new_tokens=8, **STATIC)


def test_a_static_cache_of_transformers_is_no_buffer(target):
    cache = StaticCache(config=target.config, max_cache_len=12)
    with pytest.raises(ValueError, match='A StaticCache of 12 columns .* pass cache_implementation="static"'):
        target.generate(make_prompt(5), assistant_model=make_drafter(target), max_new_tokens=8, **{CACHE_NAME: cache})


def test_probabilities_that_are_not_finite_are_told(target):
    drafter = make_drafter(target)
    spoil = target.lm_head.register_forward_hook(
        lambda *args: args[2] * torch.nan if args[2].shape[1] > 1 else args[2]
    )
    try:
        with pytest.raises(ValueError, match="probabilities are not finite"):
            target.generate(
                make_prompt(1), assistant_model=drafter, max_new_tokens=20, do_sample=True,
                cache_implementation="static", speculation=FIXED,
            )  # fmt: skip
    finally:
        spoil.remove()
