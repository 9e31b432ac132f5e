"""Rounds packed into one sequence: what they cost, that they change nothing, and who stays out of them."""

import threading

import pytest
import torch
from distributions import exact_joint, p_value, sample_joint
from fake_drafters import TableDrafter, greedy_oracle
from tiny_targets import MORE_FAMILIES, make_prompt, make_target
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dspark_hf import SpeculationConfig
from dspark_hf.generation import choosing
from dspark_hf.generation.target.flat import FlatRunner
from dspark_hf.generation.target.packing import Packing
from dspark_hf.generation.target.row_attention import Trial, attention_of, can_swap
from dspark_hf.generation.target.runner import TargetRunner
from dspark_hf.modeling.cache_name import CACHE_NAME

# Soft-caps and sinks need the target's own attention function; sliding windows are shorter than the prompts.
THRESHOLD = SpeculationConfig(confidence_threshold=0.5)


def padded(lengths, side):
    width = max(lengths)
    ids = make_prompt(width, batch_size=len(lengths))
    columns = torch.arange(width)
    lengths = torch.tensor(lengths).unsqueeze(1)
    mask = (columns >= width - lengths) if side == "left" else (columns < lengths)
    return ids * mask, mask.long()


def uneven_offers(target, lengths, side="left", max_new_tokens=24):
    """A drafter that is sure of what it gets right, and so offers each row another number of drafts."""
    ids, mask = padded(lengths, side)
    drafter, plain = greedy_oracle(
        target, ids, [0, 4, 2, 1, 3], max_new_tokens, attention_mask=mask, uneven=True, enable_confidence_head=True
    )
    kwargs = {"attention_mask": mask, "max_new_tokens": max_new_tokens, "do_sample": False}
    return ids, kwargs, drafter, plain


@pytest.fixture
def passes(monkeypatch):
    """Notes of each round: the runner's kind, and the tokens that each row is offered."""
    noted, verify = [], TargetRunner.verify
    flat_verify = FlatRunner.verify

    def note(self, ids, lens, draft_lens):
        noted.append((self._is_flat, [count + 1 for count in draft_lens]))
        return flat_verify(self, ids, lens, draft_lens)

    def note_other(self, ids, lens, draft_lens):
        if not isinstance(self, FlatRunner):
            noted.append((False, [count + 1 for count in draft_lens]))
        return verify(self, ids, lens, draft_lens)

    monkeypatch.setattr(FlatRunner, "verify", note)
    monkeypatch.setattr(TargetRunner, "verify", note_other)
    return noted


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_linear_layers_see_exactly_what_is_verified(family, passes):
    target = make_target(family, **MORE_FAMILIES.get(family, {}))
    ids, kwargs, drafter, plain = uneven_offers(target, (5, 14, 2, 9))
    seen = {name: [] for name, module in target.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, tokens in seen.items():
        target.get_submodule(name).register_forward_hook(
            lambda module, args, out, tokens=tokens: tokens.append(args[0].numel() // module.in_features)
        )
    out = target.generate(ids, assistant_model=drafter, speculation=THRESHOLD, **kwargs)
    assert out.tolist() == plain.tolist()
    expected = [sum(counts) for _, counts in passes]
    assert all(is_flat for is_flat, _ in passes)
    assert {"lm_head", "model.layers.0.self_attn.q_proj"} <= set(seen)
    # The first pass is the prompt's.
    assert all(tokens[1:] == expected for tokens in seen.values())
    padded_cost = sum(len(counts) * max(counts) for _, counts in passes)
    assert sum(expected) == len(drafter.last_stats.verified_lens) + drafter.last_stats.verified_tokens
    assert sum(expected) < 0.8 * padded_cost


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [(11,), (5, 14, 2), (9, 3, 16, 1, 7, 12, 4, 10)], ids=len)
def test_uneven_offers_are_exact(any_target, passes, lengths, side):
    ids, kwargs, drafter, plain = uneven_offers(any_target, lengths, side)
    out = any_target.generate(ids, assistant_model=drafter, speculation=THRESHOLD, **kwargs)
    assert out.tolist() == plain.tolist() and drafter.anchors_were_right
    assert passes and all(is_flat for is_flat, _ in passes)
    assert len(lengths) == 1 or any(len(set(counts)) > 1 for _, counts in passes)


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_more_families_are_exact(family, passes):
    target = make_target(family, **MORE_FAMILIES[family])
    ids, kwargs, drafter, plain = uneven_offers(target, (5, 14, 2))
    out = target.generate(ids, assistant_model=drafter, speculation=THRESHOLD, **kwargs)
    assert out.tolist() == plain.tolist() and all(is_flat for is_flat, _ in passes)


def test_layers_that_take_a_view_of_what_attention_returns(passes):
    target = make_target("afmoe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, sliding_window=8)
    ids, kwargs, drafter, plain = uneven_offers(target, (9,))
    out = target.generate(ids, assistant_model=drafter, speculation=THRESHOLD, **kwargs)
    assert out.tolist() == plain.tolist() and all(is_flat for is_flat, _ in passes)


def test_autocast(passes):
    """Keys come in float32 and values in bfloat16, and stock caches keep both in float32."""
    target, ids = make_target(), make_prompt(9, batch_size=3)
    drafter, _ = greedy_oracle(target, ids, [4, 1, 0, 3], max_new_tokens=16, uneven=True)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        out = target.generate(ids, assistant_model=drafter, max_new_tokens=16, do_sample=False)
        logits = target(out).logits[:, 8:-1].float()
    assert passes and all(is_flat for is_flat, _ in passes)
    gap = logits.amax(-1) - logits.gather(-1, out[:, 9:, None]).squeeze(-1)
    assert gap.max() < 0.03 * logits.abs().max()


def test_layers_that_share_keys(passes):
    layer_types = ["sliding_attention", "full_attention"] * 2
    target = make_target("gemma4_text", sliding_window=8, num_kv_shared_layers=2, layer_types=layer_types,
                         hidden_size_per_layer_input=8, vocab_size_per_layer_input=64)  # fmt: skip
    ids, kwargs, drafter, plain = uneven_offers(target, (5, 14, 2))
    out = target.generate(ids, assistant_model=drafter, speculation=THRESHOLD, **kwargs)
    assert out.tolist() == plain.tolist() and all(is_flat for is_flat, _ in passes)


def test_sampling_with_uneven_offers_is_exact(passes):
    target = make_target(
        vocab_size=6, num_hidden_layers=2, hidden_size=16, head_dim=4, intermediate_size=16, initializer_range=0.4
    )
    drafter = TableDrafter(6, scale=1.0, num_slots=3, taps=(0,), enable_confidence_head=True)
    ids = make_prompt(3, vocab_size=6).repeat(24, 1)
    options = {"do_sample": True, "top_k": 0, "pad_token_id": None}
    joint = exact_joint(target, ids[:1], 3, **options)
    speculation = SpeculationConfig(confidence_threshold=0.12)
    counts, accepted = sample_joint(target, drafter, ids, 3, 600, speculation, max_new_tokens=4, **options)
    assert {0, 1} <= set(accepted) and any(is_flat and len(set(offer)) > 1 for is_flat, offer in passes)
    assert p_value(counts, joint) > 1e-6


def test_a_long_answer_grows_the_buffers(passes):
    """Buffers grow, and a window's start moves along, several times."""
    target = make_target("mistral")
    ids, kwargs, drafter, plain = uneven_offers(target, (3, 7), max_new_tokens=100)
    out = target.generate(ids, assistant_model=drafter, speculation=THRESHOLD, **kwargs)
    assert out.tolist() == plain.tolist() and all(is_flat for is_flat, _ in passes)


def kept_buffers(target, max_new_tokens, monkeypatch):
    """Columns of each layer's buffers after each commit."""
    columns, commit = [], FlatRunner.commit

    def note(self, *args):
        commit(self, *args)
        columns.append([layer.keys.shape[2] for layer in self.cache.layers])

    monkeypatch.setattr(FlatRunner, "commit", note)
    ids, kwargs, drafter, _ = uneven_offers(target, (12, 7), max_new_tokens=max_new_tokens)
    target.generate(ids, assistant_model=drafter, speculation=THRESHOLD, **kwargs)
    return columns


def test_a_window_keeps_little_more_than_it_needs(monkeypatch):
    columns = kept_buffers(make_target("mistral"), 90, monkeypatch)
    # Window 8, a block of up to 5, and rows that grow apart.
    assert max(max(layers) for layers in columns) < 60
    monkeypatch.undo()
    columns = kept_buffers(make_target("llama"), 90, monkeypatch)
    assert max(max(layers) for layers in columns) <= 12 + 90 + 1


def stays_out(target, passes):
    ids, kwargs, drafter, plain = uneven_offers(target, (5, 9), max_new_tokens=12)
    out = target.generate(ids, assistant_model=drafter, speculation=THRESHOLD, **kwargs)
    assert out.tolist() == plain.tolist()
    return bool(passes) and not any(is_flat for is_flat, _ in passes)


def test_attention_without_an_interface_stays_out(passes):
    assert stays_out(make_target("bloom"), passes)


def test_an_unknown_attention_function_stays_out(passes):
    AttentionInterface.register("sdpa_of_another_library", sdpa_attention_forward)
    AttentionMaskInterface.register("sdpa_of_another_library", sdpa_mask)
    target = make_target()
    target.set_attn_implementation("sdpa_of_another_library")
    assert stays_out(target, passes)


def test_compiled_layers_stay_out(passes):
    target = make_target()
    layer = target.model.layers[1]
    # What layer.compile() sets, without the time that compiling takes.
    layer._compiled_call_impl = layer._call_impl
    assert stays_out(target, passes)


def test_attention_that_goes_another_way_stays_out(passes):
    """A layer that does not ask the interface is noticed during the prompt."""
    target = make_target()
    attention = target.model.layers[2].self_attn
    attention.config = type(target.config)(**target.config.to_dict())
    attention.config._attn_implementation = "sdpa"
    assert stays_out(target, passes)


def test_attention_with_masks_of_its_own_stays_out(passes):
    """Doge's attention adds what it finds in the values of the cache, head by head."""
    assert stays_out(make_target("doge"), passes)


@pytest.mark.parametrize("returned", ["passed in", "returned"])
def test_a_cache_that_someone_gets_is_an_ordinary_one(passes, returned):
    target = make_target("mistral")
    ids, kwargs, drafter, plain = uneven_offers(target, (5, 9))
    if returned == "passed in":
        cache = DynamicCache(config=target.config)
        out = target.generate(ids, assistant_model=drafter, speculation=THRESHOLD, **{CACHE_NAME: cache}, **kwargs)
    else:
        made = target.generate(
            ids, assistant_model=drafter, speculation=THRESHOLD, return_dict_in_generate=True, **kwargs
        )
        cache, out = made[CACHE_NAME], made.sequences
    assert out.tolist() == plain.tolist() and passes and not any(is_flat for is_flat, _ in passes)
    assert type(cache) is DynamicCache and cache.get_seq_length() == out.shape[1] - 1


def test_other_passes_of_the_same_model_meet_its_own_attention(passes):
    """What another thread runs while a packed pass is under way is no part of it."""
    target = make_target("gemma3_text")
    ids, kwargs, drafter, plain = uneven_offers(target, (5, 9), max_new_tokens=8)
    prompt = make_prompt(20, seed=3, batch_size=2)
    with torch.no_grad():
        expected = target(prompt).logits
    others, is_other = [], threading.local()

    def run_other():
        is_other.set = True
        with torch.no_grad():
            others.append(target(prompt).logits)

    def start_other(module, args):
        if not getattr(is_other, "set", False):
            thread = threading.Thread(target=run_other)
            thread.start()
            thread.join()

    target.model.layers[1].register_forward_pre_hook(start_other)
    out = target.generate(ids, assistant_model=drafter, speculation=THRESHOLD, **kwargs)
    assert out.tolist() == plain.tolist() and all(is_flat for is_flat, _ in passes)
    assert len(others) == len(passes) + 1 and all(torch.equal(logits, expected) for logits in others)


def test_a_generation_that_begins_during_another_ones_pass_is_packed_too():
    target = make_target()
    with attention_of(target, Trial()):
        assert can_swap(target)


def test_a_pass_that_fails_leaves_the_target_as_it_was():
    target = make_target()
    ids, kwargs, drafter, plain = uneven_offers(target, (5, 9))
    num_calls = []

    def fail(module, args):
        num_calls.append(1)
        if len(num_calls) == 3:
            raise RuntimeError("out of memory")

    handle = target.model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        target.generate(ids, assistant_model=drafter, speculation=THRESHOLD, **kwargs)
    assert target.config._attn_implementation == "sdpa"
    handle.remove()
    assert target.generate(ids, speculation=False, **kwargs).tolist() == plain.tolist()


def test_both_ways_agree_on_what_they_return(monkeypatch):
    """The same ids and statistics, whichever way the rounds are run."""
    target = make_target("qwen3")
    results = []
    for runner in (FlatRunner, TargetRunner):
        monkeypatch.setattr(choosing, "FlatRunner", runner)
        ids, kwargs, drafter, _ = uneven_offers(target, (5, 14, 2, 9))
        out = target.generate(ids, assistant_model=drafter, speculation=THRESHOLD, **kwargs)
        stats = drafter.last_stats
        features = [torch.cat(rows) for rows in drafter.state.features]
        results.append((out.tolist(), stats.verified_lens, stats.accepted_lens, stats.rounds, features))
    assert results[0][:-1] == results[1][:-1]
    for ours, theirs in zip(results[0][-1], results[1][-1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


class TestPacking:
    def test_there_and_back(self):
        packing = Packing([4, 9, 0], [2, 1, 3])
        values = torch.arange(3 * 3 * 2).view(3, 3, 2)
        packed = packing.pack(values)
        assert packed.shape == (1, 6, 2) and (packing.num_tokens, packing.width, packing.end) == (6, 3, 10)
        back = packing.unpack(packed)
        for row, count in enumerate(packing.counts):
            assert torch.equal(back[row, :count], values[row, :count])
            assert torch.equal(back[row, count - 1 :], values[row, count - 1].expand(3 - count + 1, -1))

    def test_cells(self):
        packing = Packing([4, 9], [2, 1])
        rows, columns = packing.cells(torch.device("cpu"))
        assert rows.tolist() == [0, 0, 1] and columns.tolist() == [4, 5, 9]
        assert packing.columns(torch.device("cpu")).tolist() == [[4, 5], [9, 10]]

    @pytest.mark.parametrize("counts", [[2, 3, 1], [2, 2, 2]])
    def test_some_rows_and_tokens(self, counts):
        packing = Packing([0, 5, 7], counts)
        packed = packing.pack(torch.arange(3 * packing.width * 2).view(3, packing.width, 2))
        whole = packing.unpack(packed)
        assert torch.equal(packing.unpack(packed, 2, [2, 0]), whole[[2, 0], :2])
        assert torch.equal(packing.unpack(packed, 1), whole[:, :1])


@pytest.mark.parametrize("is_flat", [True, False])
def test_features_of_accepted_tokens_do_not_keep_rejected_ones_alive(target, is_flat):
    ids, sizes = make_prompt(6), []
    drafter, plain = greedy_oracle(target, ids, [1, 0, 4], max_new_tokens=40)
    extend = drafter.extend

    def noted(state, features, *args, **kwargs):
        sizes.append((features.nbytes, features.untyped_storage().nbytes()))
        return extend(state, features, *args, **kwargs)

    drafter.extend = noted
    out = target.generate(
        ids, assistant_model=drafter, max_new_tokens=40, do_sample=False, return_dict_in_generate=not is_flat,
        speculation=SpeculationConfig(policy="fixed", prompt_lookup=False),
    )  # fmt: skip
    assert (out if is_flat else out.sequences).tolist() == plain.tolist()
    assert len(sizes) > 10 and all(own == held for own, held in sizes)
