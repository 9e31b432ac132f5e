"""Every kind of drafter goes through the same loop: greedy as plain `generate()`, sampling with its distribution."""

import pytest
import torch
from distributions import exact_joint, p_value, sample_joint
from fake_drafters import greedy_oracle
from tiny_targets import make_prompt, make_target
from transformers import DynamicCache

from dspark_hf import DFlashModel, DSparkModel, Eagle3Model, SpeculationConfig, attach_drafter, detach_drafter
from dspark_hf.modeling.cache_name import CACHE_NAME

KINDS = {
    "dflash": lambda target, **fields: DFlashModel.from_target(target, num_hidden_layers=1, block_size=4, **fields),
    "dflash-mask-slots": lambda target, **fields: DFlashModel.from_target(
        target, num_hidden_layers=1, block_size=5, sample_from_anchor=False, **fields
    ),
    "eagle3": lambda target, **fields: Eagle3Model.from_target(target, ttt_length=4, **fields),
    "eagle3-qwen3": lambda target, **fields: Eagle3Model.from_target(target, ttt_length=4, family="qwen3", **fields),
    "dspark-rnn": lambda target, **fields: DSparkModel.from_target(
        target, num_hidden_layers=1, block_size=4, markov_rank=4, markov_head_type="rnn", **fields
    ),
    "dspark-window": lambda target, **fields: DSparkModel.from_target(
        target,
        num_hidden_layers=2,
        block_size=4,
        markov_rank=4,
        family="qwen3",
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        **fields,
    ),  # fmt: skip
    "dspark-gemma4": lambda target, **fields: DSparkModel.from_target(
        target, num_hidden_layers=1, block_size=4, markov_rank=4, family="gemma4_text", **fields
    ),
}


@pytest.fixture(scope="module")
def prompt():
    ids = make_prompt(9, batch_size=3)
    mask = torch.ones_like(ids)
    mask[0, :5] = mask[2, :8] = 0  # a row of one token, too
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [{}, {"draft_vocab_size": 30}], ids=str)
def test_greedy_batch(target, prompt, kind, fields):
    drafter = KINDS[kind](target, **fields)
    kwargs = {"max_new_tokens": 24, "do_sample": False, "repetition_penalty": 1.3}
    plain = target.generate(**prompt, **kwargs)
    assert torch.equal(target.generate(**prompt, **kwargs, assistant_model=drafter), plain)
    assert torch.equal(target.generate(**prompt, **kwargs, assistant_model=drafter,
                                       speculation=SpeculationConfig(max_draft_len=2)), plain)  # fmt: skip
    single = {name: value[1:2] for name, value in prompt.items()}
    assert torch.equal(target.generate(**single, **kwargs, assistant_model=drafter), plain[1:2])


@pytest.mark.parametrize("kind", ["dspark-rnn", "eagle3"])
@pytest.mark.parametrize("num_rows", [1, 2])
def test_a_prompt_of_padding_alone(target, kind, num_rows):
    """As without a prompt, where the bos token is the padding token, too."""
    ids = torch.zeros(num_rows, 1, dtype=torch.long)
    kwargs = {"attention_mask": torch.zeros_like(ids), "max_new_tokens": 8, "do_sample": False}
    plain = target.generate(ids, **kwargs)
    assert torch.equal(target.generate(ids, **kwargs, assistant_model=KINDS[kind](target)), plain)
    assert not kwargs["attention_mask"].any()


@pytest.mark.parametrize("kind", ["dflash-mask-slots", "eagle3"])
def test_rows_that_end_at_different_times(target, prompt, kind):
    drafter = KINDS[kind](target)
    kwargs = {"max_new_tokens": 24, "do_sample": False}
    first = target.generate(**prompt, **kwargs)
    eos = [int(first[0, 12]), int(first[1, 20])]
    plain = target.generate(**prompt, **kwargs, eos_token_id=eos)
    assert torch.equal(target.generate(**prompt, **kwargs, eos_token_id=eos, assistant_model=drafter), plain)
    out = target.generate(**prompt, **kwargs, eos_token_id=eos, assistant_model=drafter, return_dict_in_generate=True)
    assert torch.equal(out.sequences, plain)


@pytest.mark.parametrize(
    ("kind", "batch_size"), [("dflash", 25), pytest.param("eagle3", 1, marks=pytest.mark.slow), ("eagle3", 25)]
)
def test_joint_distribution(kind, batch_size):
    target = make_target(vocab_size=6, num_hidden_layers=2, hidden_size=16, head_dim=4, intermediate_size=16,
                         initializer_range=0.4)  # fmt: skip
    drafter = KINDS[kind](target, target_layer_ids=[0], initializer_range=0.2)
    ids = make_prompt(3, vocab_size=6).repeat(batch_size, 1)
    common = {"do_sample": True, "top_k": 0, "pad_token_id": None, "temperature": 0.9}
    counts, accepted = sample_joint(target, drafter, ids, 3, 400, max_new_tokens=4, **common)
    assert {0, 1, 2} <= set(accepted)
    assert p_value(counts, exact_joint(target, ids[:1], 3, **common)) > 1e-6


def test_drafters_are_given_the_tokens_of_their_features(target, prompt):
    drafter, plain = greedy_oracle(target, prompt["input_ids"], [3, 0, 1, 2], attention_mask=prompt["attention_mask"],
                                   max_new_tokens=30, uneven=True)  # fmt: skip
    target.generate(**prompt, max_new_tokens=30, do_sample=False, assistant_model=drafter)
    for row, seen in enumerate(drafter.state.ids):
        tokens = plain[row][torch.cat([prompt["attention_mask"][row].bool(), torch.ones(30, dtype=torch.bool)])]
        assert len(seen) > 20 and seen == tokens[: len(seen)].tolist()


@pytest.mark.parametrize(("kind", "num_draft_tokens"), [("dspark-rnn", None), ("eagle3", 4)])
def test_a_target_with_added_tokens_keeps_its_distribution(kind, num_draft_tokens):
    """The drafter knows the first five of seven tokens; the target writes and reads all of them."""
    target = make_target(vocab_size=5, num_hidden_layers=2, hidden_size=16, head_dim=4, intermediate_size=16,
                         initializer_range=0.4)  # fmt: skip
    drafter = KINDS[kind](target, target_layer_ids=[0], initializer_range=0.2, draft_vocab_size=num_draft_tokens)
    target.resize_token_embeddings(7, mean_resizing=False)
    for weight in (target.get_input_embeddings().weight, target.get_output_embeddings().weight):
        weight.data[5:] = 0.9 * weight.data[[1, 3]]  # tokens that come about as often as these
    ids = torch.tensor([[1, 6, 3]]).repeat(25, 1)
    common = {"do_sample": True, "top_k": 0, "pad_token_id": None, "temperature": 0.9}
    speculation = SpeculationConfig(check_target=False)
    counts, accepted = sample_joint(target, drafter, ids, 3, 400, speculation, max_new_tokens=4, **common)
    joint = exact_joint(target, ids[:1], 3, **common)
    assert {0, 1, 2} <= set(accepted)
    assert joint.shape == (7, 7, 7) and joint[5:].sum() > 0.02 and counts[5:].sum() > 0
    assert p_value(counts, joint) > 1e-6


def test_attached(target, prompt):
    drafter = KINDS["eagle3"](target)
    plain = target.generate(**prompt, max_new_tokens=9, do_sample=False)
    attach_drafter(target, drafter)
    assert torch.equal(target.generate(**prompt, max_new_tokens=9, do_sample=False), plain)
    assert drafter.last_stats.rounds > 0 and detach_drafter(target) is drafter


def test_eagle3_goes_on_with_a_cropped_cache(target):
    drafter = KINDS["eagle3"](target)
    cache, ids = DynamicCache(config=target.config), make_prompt(9)
    kwargs = {"assistant_model": drafter, "max_new_tokens": 8, "do_sample": False}
    target.generate(ids, **{CACHE_NAME: cache}, **kwargs)
    cache.crop(6 - cache.get_seq_length())
    other = torch.cat([ids[:, :6], make_prompt(4, seed=5)], 1)
    out = target.generate(other, **{CACHE_NAME: cache}, return_dict_in_generate=True, **kwargs).sequences
    assert torch.equal(out, target.generate(other, max_new_tokens=8, do_sample=False))
    # What it has read is what it would have read at once.
    fresh, state = drafter.start(1), cache.dspark_context.state
    hidden = target(out[:, :-1], output_hidden_states=True).hidden_states
    features = torch.cat([hidden[layer + 1] for layer in drafter.config.target_layer_ids], -1)
    drafter.extend(fresh, features.detach(), ids=out[:, :-1])
    logits = []
    for context in (fresh, state):
        drafter.propose(context, out[:, -1], lambda scores, *_: (logits.append(scores), (scores.argmax(-1), None))[1])
    torch.testing.assert_close(torch.stack(logits[:4]), torch.stack(logits[4:]), rtol=1e-3, atol=1e-3)


def test_eagle3_cannot_read_embeddings(target):
    with pytest.raises(ValueError, match="Eagle3Model reads the prompt's tokens, and inputs_embeds take their place"):
        target.generate(inputs_embeds=torch.randn(1, 5, 32), assistant_model=KINDS["eagle3"](target), max_new_tokens=3)
