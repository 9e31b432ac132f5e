"""Whatever decides on lengths, the distribution is the target's; and decisions that saw too much are caught."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from distributions import exact_joint, p_value, sample_joint
from fake_drafters import TableDrafter
from tiny_targets import make_prompt, make_target

from dspark_hf import PrefixScheduler, PromptLookup, SpeculationConfig, StepCost
from dspark_hf.generation.drafts.proposing import Proposer
from dspark_hf.generation.lengths.schedule import Schedule

pytestmark = pytest.mark.cost

OPTIONS = {"do_sample": True, "top_k": 0, "pad_token_id": None}
STAIRS = StepCost([1, 2, 3, 5, 8, 16, 64], [1], [[1.0, 1.05, 1.3, 1.35, 1.9, 2.0, 4.0]], [1, 64], [0.05, 0.2])
# For 64 rows; one that stops in front of the first stair needs a table without.
WIDE = replace(STAIRS, tokens=[64 * count for count in STAIRS.tokens])
FLAT = StepCost([1, 512], [1], [[1.0, 1.0]], [1], [0.05])
SCHEDULERS = {
    "auto": PrefixScheduler(step_cost=STAIRS, probe_interval=3),
    "lagged": PrefixScheduler("lagged", step_cost=STAIRS),
    "early_stop": PrefixScheduler("early_stop", step_cost=STAIRS),
    "threshold": PrefixScheduler("threshold", threshold=0.35),
    "fixed": PrefixScheduler("fixed"),
}


@pytest.fixture(scope="module")
def tiny():
    """A target with four tokens, a prompt, and the joint distribution of the first three."""
    torch.manual_seed(0)
    target = make_target(
        vocab_size=4, num_hidden_layers=2, hidden_size=16, head_dim=4, intermediate_size=16, initializer_range=0.4
    )
    ids = make_prompt(4, vocab_size=4)
    return target, ids, exact_joint(target, ids, 3, **OPTIONS)


def sampled(tiny, scheduler, batch_size, num_samples, drafter=None, verification="block", **speculation):
    """p-value of samples, and how many drafts were verified in their rounds."""
    target, ids, joint = tiny
    torch.manual_seed(7)
    drafter = drafter or TableDrafter(4, scale=1.0, sway=0.8, num_slots=3, taps=(0,))
    speculation = SpeculationConfig(policy=scheduler, verification=verification, prompt_lookup=False, **speculation)
    counts, _ = sample_joint(
        target, drafter, ids.repeat(batch_size, 1), 3, num_samples, speculation, max_new_tokens=6, **OPTIONS
    )
    return p_value(counts, joint), drafter.last_stats.verified_lens


@pytest.mark.parametrize(("batch_size", "verification"), [(1, "block"), (3, "token"), (64, "block")])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_policy_keeps_the_distribution(tiny, name, verification, batch_size):
    num_samples = {1: 30, 3: 60, 64: 640}[batch_size]
    scheduler = SCHEDULERS[name]
    if batch_size == 64 and scheduler.step_cost is not None:
        scheduler = replace(scheduler, step_cost=FLAT if name == "early_stop" else WIDE)
    value, _ = sampled(tiny, scheduler, batch_size, num_samples, verification=verification)
    assert value > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("verification", ["block", "token"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_policy_keeps_the_distribution_of_many_samples(tiny, name, verification, batch_size):
    value, _ = sampled(tiny, SCHEDULERS[name], batch_size, 3000, verification=verification)
    assert value > 1e-5


class Reads(TableDrafter):
    """Confidence in a slot that depends on the slot's own token, which a cut must not know."""

    def _bias(self, anchor_ids, ids):
        return self.sway * (ids.float() - 1.5)


def test_a_cut_that_read_the_next_draft_is_caught(tiny):
    drafter = Reads(4, scale=1.0, sway=6.0, num_slots=3, taps=(0,))
    assert sampled(tiny, SCHEDULERS["threshold"], 64, 1280, drafter)[0] < 1e-6


def test_a_retrospective_scheduler_is_caught(tiny, monkeypatch):
    """It looks at all survival of a block and then cuts where tokens per second are most."""

    def cut(self, parts, lens, in_step=False):
        survival = parts[0].survival
        # A whole block where its last slot looks well, which its drafts decide.
        return [n if survival[row, -1] > 0.12 else 0 for row, n in enumerate(lens)]

    monkeypatch.setattr(Schedule, "cut", cut)
    drafter = TableDrafter(4, scale=1.0, sway=3.0, num_slots=3, taps=(0,))
    assert sampled(tiny, SCHEDULERS["early_stop"], 64, 2560, drafter)[0] < 1e-6


def test_a_source_that_was_chosen_by_its_first_draft_is_caught(tiny, monkeypatch):
    """Lookup where the drafter's first token is the same, else the drafter."""
    draft = Proposer._draft

    def choose(self, room):
        found, proposal, lens, asked = draft(self, room)
        if proposal is not None:
            # As if this had been looked up: certain drafts of token 2, in rows whose own first draft is that.
            found = [[2] if n > 0 and proposal.ids[row, 0] == 2 else drafts
                     for row, (n, drafts) in enumerate(zip(lens, found, strict=True))]  # fmt: skip
            lens = [1 if drafts else n for drafts, n in zip(found, lens, strict=True)]
        return found, proposal, lens, asked

    monkeypatch.setattr(Proposer, "_draft", choose)
    drafter = TableDrafter(4, scale=1.0, num_slots=1, taps=(0,))
    assert sampled(tiny, SCHEDULERS["fixed"], 64, 1280, drafter)[0] < 1e-6


def test_lookup_beside_a_drafter_keeps_the_distribution(tiny):
    target, ids, joint = tiny
    torch.manual_seed(1)
    drafter = TableDrafter(4, scale=1.0, num_slots=3, taps=(0,))
    lookup = PromptLookup(num_slots=2, min_ngram=1)
    flat = StepCost([1, 512], [1], [[1.0, 1.1]], [1], [0.05])
    speculation = SpeculationConfig(policy=PrefixScheduler(step_cost=flat), prompt_lookup=lookup)
    counts, _ = sample_joint(target, drafter, ids.repeat(64, 1), 3, 640, speculation, max_new_tokens=6, **OPTIONS)
    assert p_value(counts, joint) > 1e-5 and drafter.last_stats.lookup_verifications > 0


def test_no_draft_decides_on_itself_in_a_generation(tiny, monkeypatch):
    """Each round is decided again with other tokens from some slot on: whether that slot is verified stays."""
    target, ids, _ = tiny
    cut, checked = Schedule.cut, []

    def twice(self, parts, lens, in_step=False):
        before = cut(self, parts, lens, in_step)
        part, rng = parts[0], np.random.default_rng(len(checked))
        row, slot = int(rng.integers(len(lens))), int(rng.integers(max(lens)))
        kept, num_probes = part.survival, self._num_probes
        part.survival = kept.copy()
        part.survival[row, slot + 1 :] *= rng.uniform(0, 1)
        self._num_probes = num_probes - (num_probes > 0 and self._probes(part.record))
        after = cut(self, parts, lens, in_step)
        part.survival, self._num_probes = kept, num_probes
        checked.append((before[row] > slot) == (after[row] > slot))
        return before

    monkeypatch.setattr(Schedule, "cut", twice)
    for name in ("auto", "early_stop", "threshold"):
        for batch_size in (1, 3, 8):
            speculation = SpeculationConfig(policy=SCHEDULERS[name], prompt_lookup=False)
            drafter = TableDrafter(4, scale=1.0, sway=0.8, num_slots=3, taps=(0,))
            rows = ids.repeat(batch_size, 1)
            for _ in range(3):
                target.generate(rows, assistant_model=drafter, speculation=speculation, max_new_tokens=6, **OPTIONS)
    assert len(checked) > 40 and all(checked)
