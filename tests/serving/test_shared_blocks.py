"""Requests that share blocks of the cache share what the drafter reads of them: their context is whole."""

import copy
import random

import pytest
import torch
from knowing import knowing_drafter, plain_answer, small_batching
from test_batching import ALL_SLOTS, greedy_config
from tiny_targets import make_target

from dspark_hf import DSparkModel, Eagle3Model
from dspark_hf.serving.block_states import BlockStates


def start(target, drafter, **options):
    manager = target.init_continuous_batching(
        greedy_config(target), small_batching(**options), assistant_model=drafter, speculation=ALL_SLOTS
    )
    manager.start()
    return manager


def ask(manager, prompt, max_new_tokens, request_id=None):
    """The answer to one request, and tau of it alone."""
    before = manager.stats.emitted_tokens, manager.stats.verifications
    manager.add_request(prompt, request_id, max_new_tokens=max_new_tokens)
    out = manager.get_result(timeout=20)
    assert out.error is None
    num_tokens, num_rounds = (
        now - then
        for now, then in zip((manager.stats.emitted_tokens, manager.stats.verifications), before, strict=True)
    )
    return out.generated_tokens, num_tokens / num_rounds


def turns(target, num_turns, num_new):
    """Prompts of a chat, each with what came before in it, and their answers."""
    rng, text, found = random.Random(0), [], []
    for _ in range(num_turns):
        text = text + [rng.randint(1, 63) for _ in range(13)]
        answer = plain_answer(target, text, num_new)
        found.append((list(text), answer))
        text = text + answer
    return found


def test_a_second_turn_drafts_as_well_as_a_fresh_request():
    target = make_target()
    chat = turns(target, 4, 20)
    taus = {}
    for shares in (False, True):
        drafter = knowing_drafter(target, [prompt + answer for prompt, answer in chat])
        manager = start(target, drafter, allow_block_sharing=shares)
        for prompt, answer in chat:
            made, taus[shares, len(prompt)] = ask(manager, prompt, 20)
            assert made == answer
        assert drafter.num_lost == 0
        manager.stop(block=True, timeout=10)
    lengths = [len(prompt) for prompt, _ in chat]
    assert [taus[True, length] for length in lengths] == [taus[False, length] for length in lengths]


@pytest.mark.parametrize("kind", [DSparkModel, Eagle3Model])
def test_the_context_of_a_second_turn_is_that_of_a_fresh_request(kind, monkeypatch):
    """To the bit, for drafters with weights: every proposal is the same."""
    target = make_target()
    fields = {} if kind is Eagle3Model else {"mask_token_id": 1, "block_size": 4, "markov_rank": 4}
    torch.manual_seed(0)
    drafter = kind.from_target(target, target_layer_ids=[0, 2], **fields).eval()
    chat, proposals = turns(target, 3, 12), {}
    for shares in (False, True):
        kept = proposals[shares] = []
        whole = kind.propose

        def propose(self, state, *args, kept=kept, whole=whole, **kwargs):
            proposal = whole(self, state, *args, **kwargs)
            kept.append((list(state.context_lens), state.first_positions, proposal.ids.tolist()))
            return proposal

        monkeypatch.setattr(kind, "propose", propose)
        manager = start(target, drafter, allow_block_sharing=shares)
        for prompt, answer in chat:
            assert ask(manager, prompt, 12)[0] == answer
        manager.stop(block=True, timeout=10)
        monkeypatch.setattr(kind, "propose", whole)
    assert proposals[True] == proposals[False] and len(proposals[True]) > 10
    assert all(first == [0] for _, first, _ in proposals[True])


def test_requests_that_begin_alike_at_once():
    """Forks and blocks that turn out to be the same among them."""
    target = make_target()
    stem = [random.Random(1).randint(1, 63) for _ in range(30)]
    prompts = [stem + [number, 7] for number in range(1, 7)]
    answers = [plain_answer(target, prompt, 15) for prompt in prompts]
    drafter = knowing_drafter(target, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    manager = start(target, drafter)
    assert ask(manager, prompts[0], 15)[0] == answers[0]
    for number, prompt in enumerate(prompts):
        manager.add_request(prompt, f"r{number}", max_new_tokens=15)
    results = {}
    while len(results) < len(prompts):
        out = manager.get_result(timeout=20)
        results[out.request_id] = out.generated_tokens
    manager.stop(block=True, timeout=10)
    assert [results[f"r{number}"] for number in range(6)] == answers and drafter.num_lost == 0


def test_answers_that_fork_leave_whole_blocks_behind():
    target = make_target()
    prompt = [5, 6, 7] * 6
    answer = plain_answer(target, prompt, 20)
    chat = prompt + answer + [9, 10]
    follow = plain_answer(target, chat, 12)
    drafter = knowing_drafter(target, [prompt + answer, chat + follow])
    config = copy.deepcopy(target.generation_config)
    config.update(do_sample=True, top_k=1, num_return_sequences=3, eos_token_id=-1)
    manager = target.init_continuous_batching(config, small_batching(), assistant_model=drafter, speculation=ALL_SLOTS)
    manager.start()
    for text, expected in ((prompt, answer), (chat, follow)):
        manager.add_request(text, max_new_tokens=len(expected))
        assert [manager.get_result(timeout=20).generated_tokens for _ in range(3)] == [expected] * 3
    manager.stop(block=True, timeout=10)
    assert drafter.num_lost == 0


def test_a_step_that_failed_leaves_whole_contexts(monkeypatch):
    """Requests that were not in it go on, and those that were begin anew, each with its context."""
    from dspark_hf.serving.batching import processor

    target = make_target()
    rng = random.Random(2)
    prompts = [[rng.randint(1, 63) for _ in range(20)] for _ in range(4)]
    answers = [plain_answer(target, prompt, 25) for prompt in prompts]
    drafter = knowing_drafter(target, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    whole, num_left = processor.DraftProcessor.judge, [6]

    def judge(self, logits):
        num_left[0] -= 1
        if num_left[0] == 0:
            raise torch.OutOfMemoryError("injected")
        whole(self, logits)

    monkeypatch.setattr(processor.DraftProcessor, "judge", judge)
    manager = start(target, drafter)
    for number, prompt in enumerate(prompts):
        manager.add_request(prompt, f"r{number}", max_new_tokens=25)
    results = {}
    while len(results) < 4:
        out = manager.get_result(timeout=20)
        results[out.request_id] = out
    again = {name: ask(manager, prompts[int(name[1:])], 25, f"{name}-again")[0] for name in results}
    manager.stop(block=True, timeout=10)
    assert any(out.error for out in results.values())
    assert [again[f"r{number}"] for number in range(4)] == answers and drafter.num_lost == 0


def test_memory_is_that_of_the_blocks():
    target = make_target()
    drafter = knowing_drafter(target)
    manager = start(target, drafter, num_blocks=32)
    rng, sizes = random.Random(0), set()
    stem = [rng.randint(1, 63) for _ in range(24)]
    for number in range(30):
        ask(manager, stem[: rng.randint(1, 24)] + [rng.randint(1, 63) for _ in range(9)], 6)
        blocks = manager.batch_processor.drafter._blocks
        sizes.add(blocks.num_bytes)
        assert len(blocks._filled) <= 34, number
    manager.stop(block=True, timeout=10)
    # Those of the cache and two that transformers keeps for padding.
    assert sizes == {34 * 8 * target.config.hidden_size * 4}


def test_models_with_windows_share_nothing():
    target = make_target("mistral")
    manager = start(target, knowing_drafter(target))
    ask(manager, [5, 6, 7], 4)
    assert manager.batch_processor.drafter._blocks is None
    manager.stop(block=True, timeout=10)


class Tables(dict):
    """Blocks of requests, of four tokens each."""

    def states(self, num_blocks=8):
        return BlockStates(lambda request_id: self.get(request_id, ()), 4, num_blocks)


def test_what_is_found_reaches_back_to_the_first_gap():
    tables = Tables(a=[3, 5, 1])
    blocks = tables.states()
    written = torch.arange(20.0).view(10, 2)
    blocks.write(blocks.place("a", 0, 3), written[:3])
    blocks.write(blocks.place("a", 3, 7), written[3:])
    assert torch.equal(blocks.read(blocks.find("a", 10)), written)
    assert torch.equal(blocks.read(blocks.find("a", 8)), written[:8])
    assert blocks.find("a", 11) == []
    # Another's block in the middle: what stands before it is not reached.
    tables["b"] = [3, 6, 1]
    assert torch.equal(blocks.read(blocks.find("b", 10)), written[8:])
    # A block that is given away is new from its first token on, and one that is filled from elsewhere is lost.
    tables["c"] = [5]
    blocks.place("c", 0, 2)
    assert blocks.find("a", 8) == [] and len(blocks.find("c", 2)) == 2
    blocks.forget_request("c")
    assert blocks.find("c", 2) == []


def test_a_fork_has_copies_of_what_it_does_not_share():
    tables = Tables(a=[2, 4], b=[2, 7])
    blocks = tables.states()
    written = torch.arange(12.0).view(6, 2)
    blocks.write(blocks.place("a", 0, 6), written)
    blocks.copy("a", "b")
    assert torch.equal(blocks.read(blocks.find("b", 6)), written)
    blocks.write(blocks.place("b", 6, 1), torch.ones(1, 2))
    assert torch.equal(blocks.read(blocks.find("a", 6)), written) and blocks.find("a", 7) == []
