"""The contexts of many requests are what each would have alone, whoever comes and goes."""

import random

import pytest
import torch
from tiny_targets import make_target

from dspark_hf import DFlashModel, DSparkModel, Eagle3Model
from dspark_hf.serving.contexts import Part, RequestContexts


def make_drafter(kind):
    target = make_target()
    fields = {"target_layer_ids": [0, 2]}
    if kind is not Eagle3Model:
        fields |= {"mask_token_id": 1, "block_size": 4}
    if kind is DSparkModel:
        fields |= {"markov_rank": 4}
    return kind.from_target(target, **fields).eval().bind(target)


class Text:
    """A text with the features of its tokens, and how far it was read."""

    def __init__(self, length, first=0):
        self.ids = torch.randint(1, 64, (length,))
        self.features = torch.randn(length, 64)
        self.first = self.end = first

    def alone(self, drafter):
        """Drafts behind what was read, by a state of its own."""
        state = drafter.start(1)
        state.move_to([self.first])
        own = slice(self.first, self.end)
        drafter.extend(state, self.features[None, own], None, self.ids[None, own])
        return drafter.propose(state, self.ids[None, self.end], None, 3).ids[0].tolist()


def step(contexts, texts, counts, complete):
    """Let some texts go on in one step, each by its count, with tokens behind that do not stand."""
    parts, features, ids, begin = [], [], [], 0
    for name, count in counts.items():
        text = texts[name]
        own = slice(text.end, text.end + count)
        parts.append(Part(name, text.end, begin, count, complete[name]))
        # What was rejected is between one request's tokens and the next one's.
        features += [text.features[own], torch.randn(2, 64)]
        ids += [text.ids[own], torch.zeros(2, dtype=torch.int64)]
        begin += count + 2
        text.end += count
    contexts.note(parts, torch.cat(features), torch.cat(ids))


def drafts_of(contexts, texts, names):
    anchors = {name: int(texts[name].ids[texts[name].end]) for name in names}
    rows, proposal = contexts.propose(anchors, lambda rows: None, 3, None)
    return {name: proposal.ids[rows.index(name)].tolist() for name in names}


def test_states_do_not_hold_on_to_what_they_were_made_of():
    """A server notes steps for as long as it runs, and nobody asks for gradients."""
    contexts, texts = RequestContexts(make_drafter(DSparkModel)), {"r": Text(200)}
    for _ in range(3):
        step(contexts, texts, {"r": 40}, {"r": True})
        drafts_of(contexts, texts, ["r"])
    step(contexts, texts, {"r": 70}, {"r": True})
    states = [states for states, _ in contexts._read._chunks]
    assert states and not any(one.requires_grad for one in states)


@pytest.mark.parametrize("kind", [DSparkModel, DFlashModel, Eagle3Model])
def test_drafts_are_those_of_single_requests(kind):
    torch.manual_seed(0)
    drafter, rng = make_drafter(kind), random.Random(0)
    contexts, texts, is_read = RequestContexts(drafter), {}, set()
    for number in range(25):
        if number % 3 == 0:
            # Every other one has its beginning from elsewhere.
            texts[f"r{number}"] = Text(200, first=16 * (number % 2))
            texts[f"s{number}"] = Text(200)
        counts, complete = {}, {}
        for name in texts:
            if name not in is_read:
                counts[name], complete[name] = rng.randint(2, 9), rng.random() < 0.6
            elif rng.random() < 0.8:
                counts[name], complete[name] = rng.randint(1, 4), True
        step(contexts, texts, counts, complete)
        is_read |= {name for name, whole in complete.items() if whole}
        for name in [name for name in texts if rng.random() < 0.08]:
            del texts[name]
            is_read.discard(name)
        contexts.keep(set(texts))
        assert len(contexts) == len(texts)
        if is_read and number % 2:
            names = sorted(is_read)
            assert drafts_of(contexts, texts, names) == {name: texts[name].alone(drafter) for name in names}
            assert all(contexts.ends_at(name) == texts[name].end for name in texts)
    contexts.keep(set())
    assert len(contexts) == 0


def test_a_request_that_goes_on_elsewhere_begins_anew():
    torch.manual_seed(0)
    drafter = make_drafter(DSparkModel)
    contexts, texts = RequestContexts(drafter), {"a": Text(60), "b": Text(60)}
    step(contexts, texts, {"a": 9, "b": 12}, {"a": True, "b": True})
    # It was preempted, and only the end of it is read again.
    texts["a"].first = texts["a"].end = 20
    step(contexts, texts, {"a": 5, "b": 1}, {"a": True, "b": True})
    assert drafts_of(contexts, texts, ["a", "b"]) == {name: texts[name].alone(drafter) for name in ("a", "b")}


def test_a_fork_goes_on_from_where_the_other_is():
    torch.manual_seed(0)
    drafter = make_drafter(DSparkModel)
    contexts, texts = RequestContexts(drafter), {"a": Text(60)}
    step(contexts, texts, {"a": 9}, {"a": False})
    contexts.fork("a", "a__child#0")
    texts["a__child#0"] = Text(60)
    texts["a__child#0"].ids[:9], texts["a__child#0"].features[:9] = texts["a"].ids[:9], texts["a"].features[:9]
    texts["a__child#0"].end = 9
    names = ["a", "a__child#0"]
    step(contexts, texts, dict.fromkeys(names, 1), dict.fromkeys(names, True))
    step(contexts, texts, dict.fromkeys(names, 3), dict.fromkeys(names, True))
    assert drafts_of(contexts, texts, names) == {name: texts[name].alone(drafter) for name in names}
