"""What passes take: looked up at the next larger size that was measured, and refused where it is no table."""

import json
import time
import warnings
from dataclasses import replace

import pytest
import torch
from fake_drafters import greedy_oracle
from tiny_targets import make_prompt

from dspark_hf import DSparkModel, PrefixScheduler, SpeculationConfig, StepCost
from dspark_hf.generation.lengths.cost_files import (
    check_cost,
    circumstances,
    cost_path,
    kept_cost,
    load_cost,
    save_cost,
    to_sglang,
)
from dspark_hf.generation.lengths.cost_log import CostLog
from dspark_hf.generation.target.flat import FlatRunner
from dspark_hf.processor import multiplies

TABLE = {
    "tokens": [1, 4, 16],
    "contexts": [100, 300],
    "verify_seconds": [[1.0, 2.0, 4.0], [2.0, 4.0, 8.0]],
    "rows": [1, 8],
    "draft_seconds": [0.1, 0.4],
}


def test_a_size_that_was_not_measured_costs_what_the_next_one_does():
    cost = StepCost(**TABLE)
    assert cost.verify(6, 100).tolist() == [0.0, 1.0, 2.0, 2.0, 2.0, 4.0, 4.0]
    # Past the largest, time grows with the tokens; between contexts evenly, and not past them.
    assert cost.verify(32, 100)[32] == 8.0
    assert cost.verify(4, 200)[4] == 3.0 and cost.verify(4, 1000)[4] == 4.0
    for num_tokens in range(1, 40):
        for context_len in (1, 100, 150, 200, 299, 1000):
            expected = cost.verify(num_tokens, context_len)[-1]
            assert cost.of_pass(num_tokens, context_len) == pytest.approx(expected, rel=1e-12)
    assert [cost.draft(rows) for rows in (1, 2, 8, 16)] == [0.1, 0.4, 0.4, 0.8]
    assert cost.without_draft().draft(5) == 0.0


@pytest.mark.cost
def test_the_rule_of_thumb_knows_devices_and_threads(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    ratios = {}
    for threads in (1, 2, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        ratios[threads] = StepCost.rule_of_thumb(torch.device("cpu")).verify(17)[17]
    assert ratios[1] == ratios[2] == pytest.approx(1.4) and ratios[16] < 1.1
    cost = StepCost.rule_of_thumb(torch.device("meta"))
    assert cost.verify(257)[257] == pytest.approx(1.4, abs=0.1) and cost.draft(1) == pytest.approx(0.18, abs=0.01)


@pytest.mark.cost
def test_by_the_rule_of_thumb_a_proposal_for_many_rows_takes_the_time_of_their_blocks(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    cost = StepCost.rule_of_thumb(torch.device("cpu"))
    passes = cost.verify(160)
    for rows in (1, 8, 32):
        assert cost.draft(rows) == pytest.approx(0.175 * passes[5 * rows])
    # As measured: a third of a pass over one token.
    assert 0.3 < cost.draft(8) < 0.4
    assert cost.draft(1) == pytest.approx(0.2, abs=0.01)
    on_a_gpu = StepCost.rule_of_thumb(torch.device("meta"))
    assert on_a_gpu.draft(8) == pytest.approx(on_a_gpu.draft(1), rel=0.1)


@pytest.mark.cost
def test_the_rule_of_thumb_in_float32_is_as_measured_without_avx512(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True}, raising=False)
    wide = StepCost.rule_of_thumb(cpu, torch.float32).verify(64)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": False}, raising=False)
    cost = StepCost.rule_of_thumb(cpu, torch.float32)
    measured = {2: 1.62, 8: 1.95, 16: 2.21, 32: 3.16, 64: 4.21}
    assert cost.verify(64)[list(measured)] == pytest.approx(list(measured.values()), rel=0.1)
    assert [cost.draft(1), cost.draft(8)] == pytest.approx([0.32, 0.55], rel=0.1)
    assert wide[2] < cost.verify(64)[2] < 1.05 * wide[2] and wide[64] < 0.8 * cost.verify(64)[64]


@pytest.mark.cost
@pytest.mark.parametrize(
    ("can", "native"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": False}, False),
        ({"sve": True}, True),
    ],
)
def test_the_rule_of_thumb_knows_what_a_processor_multiplies(monkeypatch, can, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
    cpu = torch.device("cpu")
    of_six = {dtype: StepCost.rule_of_thumb(cpu, dtype).verify(6)[6] for dtype in (torch.bfloat16, torch.float32)}
    # As measured: 1.1 with instructions for bfloat16, 3.2 without, and 1.6 to 1.7 in float32.
    assert of_six[torch.bfloat16] < 1.2 if native else of_six[torch.bfloat16] > 3
    assert 1.5 < of_six[torch.float32] < 1.8
    assert multiplies(torch.device("meta"), torch.bfloat16) and multiplies(cpu, torch.bfloat16) == native


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tokens": [4, 1, 16]},
            r"tokens of a step cost must be positive whole numbers that rise, .*got \[4, 1, 16\]",
        ),
        ({"rows": []}, r"rows of a step cost must be positive whole numbers that rise, .*got \[\]"),
        ({"verify_seconds": [[1.0, 2.0, 4.0]]}, r"verify_seconds .* shape \(2, 3\) .* without holes"),
        ({"verify_seconds": [[1.0, None, 4.0], [2.0, 4.0, 8.0]]}, "verify_seconds .* must be from 1e-09 to 1e.09"),
        ({"verify_seconds": [[1.0, 0.0, 4.0], [2.0, 4.0, 8.0]]}, "verify_seconds .* must be from 1e-09 to 1e.09"),
        ({"verify_seconds": [[1.0, 2.0, 10**400], [2.0, 4.0, 8.0]]}, "verify_seconds .* without holes"),
        ({"verify_seconds": [[1.0, 2.0, 1e200], [2.0, 4.0, 8.0]]}, "verify_seconds .* must be from 1e-09 to 1e.09"),
        ({"verify_seconds": [[1.0, "2.0", 4.0], [2.0, 4.0, 8.0]]}, "verify_seconds .* without holes"),
        ({"draft_seconds": [0.1, float("inf")]}, "draft_seconds of a step cost must be from 1e-09 to 1e.09"),
        ({"draft_seconds": [True, 0.2]}, "draft_seconds .* without holes"),
        ({"verify_seconds": [[1.0, True, 4.0], [2.0, 4.0, 8.0]]}, "verify_seconds .* without holes"),
        ({"draft_seconds": [-0.1, 0.2]}, "draft_seconds of a step cost must be from 1e-09 to 1e.09"),
        (
            {"tokens": [1, 4, 2**40]},
            r"tokens of a step cost must be .* that rise, up to 1048576, got .*\. Measure again",
        ),
        ({"contexts": [100, 10**400]}, "contexts of a step cost must be .* up to 2147483648"),
        ({"rows": None}, "rows of a step cost must be positive whole numbers"),
        ({"rows": {"1": 1}}, "rows of a step cost must be positive whole numbers"),
        ({"made_for": "here"}, "made_for of a step cost must be keys and values, got 'here'"),
    ],
)
def test_what_is_no_table_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        StepCost(**{**TABLE, **change})


class TestFiles:
    def test_a_table_comes_back_as_it_was(self, tmp_path):
        cost = StepCost(**TABLE, made_for={"device": "here", "threads": 2})
        path = save_cost(cost, tmp_path / "cost.json")
        assert load_cost(path) == cost

    def test_it_is_refused_elsewhere(self):
        cost = StepCost(**TABLE, made_for={"device": "here", "threads": 2})
        check_cost(cost, {"device": "here", "threads": 2})
        check_cost(StepCost(**TABLE), {"device": "anywhere"})
        message = "something else .threads: 2 when it was measured, 4 now.. Measure here with `dspark profile`"
        with pytest.raises(ValueError, match=message):
            check_cost(cost, {"device": "here", "threads": 4})

    def test_circumstances_tell_machine_and_models(self, target):
        drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
        made_for = circumstances(target, drafter)
        assert made_for["dtype"] == "float32" and made_for["threads"] == torch.get_num_threads()
        assert made_for["device"].startswith("cpu ") and made_for["drafter"] == "DSparkModel of 4 slots and 1 layers"
        assert set(made_for["versions"]) == {"torch", "transformers", "dspark_hf"}
        other = circumstances(target.to(torch.bfloat16), drafter)
        target.to(torch.float32)
        assert cost_path(other) != cost_path(made_for)

    @pytest.mark.cost
    def test_generate_finds_what_was_measured(self, target, tmp_path, monkeypatch):
        monkeypatch.setenv("DSPARK_HF_CACHE", str(tmp_path))
        ids = make_prompt(6)
        drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
        made_for = circumstances(target, drafter)
        assert kept_cost(made_for) is None
        # Each token takes as long, so drafts cannot pay.
        dear = StepCost([1, 2, 4, 8], [1], [[1.0, 2.0, 4.0, 8.0]], [1], [0.1], made_for)
        save_cost(dear)
        assert kept_cost(made_for) == dear
        target.generate(ids, assistant_model=drafter, max_new_tokens=30, do_sample=False)
        assert drafter.last_stats.verified_tokens == 0 and drafter.last_stats.paused_rounds > 20
        assert drafter.last_stats.costs == "measured"
        assert "costs of passes: measured" in drafter.last_stats.summary()
        # One that is damaged is said so, and costs are estimated.
        cost_path(made_for).write_text('{"verify_seconds": [[1.0]]}')
        with pytest.warns(UserWarning, match="is no step cost: .* Costs are estimated instead; `dspark profile`"):
            speculation = SpeculationConfig(prompt_lookup=False)
            # Another one, so that no pause goes on.
            drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
            target.generate(ids, assistant_model=drafter, speculation=speculation, max_new_tokens=30, do_sample=False)
        assert drafter.last_stats.verified_tokens > 0 and drafter.last_stats.costs == "rule of thumb"

    @pytest.mark.parametrize(
        "damage",
        [
            {"made_for": ["a"]}, {"made_for": None}, {"tokens": None}, {"rows": {"1": 2}}, {"tokens": [1, 4, 10**30]},
            {"verify_seconds": {"a": 1}}, {"verify_seconds": [[10**400, 1, 1]] * 2}, {"draft_seconds": "fast"},
            {"more": 1},
        ],
        ids=str,
    )  # fmt: skip
    def test_a_damaged_table_is_a_warning(self, damage, tmp_path, monkeypatch):
        monkeypatch.setenv("DSPARK_HF_CACHE", str(tmp_path))
        made_for = {"device": "here"}
        save_cost(StepCost(**TABLE, made_for=made_for))
        assert kept_cost(made_for) is not None
        cost_path(made_for).write_text(json.dumps({**TABLE, "made_for": made_for, **damage}))
        with pytest.warns(UserWarning, match="is no step cost: .* Costs are estimated instead; `dspark profile`"):
            assert kept_cost(made_for) is None

    def test_a_folder_that_cannot_be_looked_into_has_no_table(self, monkeypatch):
        """Whatever the reason: another user's home, or a name too long."""
        monkeypatch.setenv("DSPARK_HF_CACHE", "/" + 300 * "x")
        with warnings.catch_warnings(action="error"):
            assert kept_cost({"device": "here"}) is None

    @pytest.mark.cost
    @pytest.mark.parametrize("seed", [5, None])
    def test_a_seed_repeats_tokens_across_a_new_table(self, target, seed, tmp_path, monkeypatch):
        monkeypatch.setenv("DSPARK_HF_CACHE", str(tmp_path))
        ids = make_prompt(6)
        drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1).eval()

        def sample():
            speculation, outs = SpeculationConfig(seed=seed, prompt_lookup=False), []
            for number in range(3):
                torch.manual_seed(number)
                out = target.generate(
                    ids, assistant_model=drafter, speculation=speculation, max_new_tokens=40, do_sample=True,
                    temperature=0.2,
                )  # fmt: skip
                outs.append((out.tolist(), drafter.last_stats.verified_lens))
            return outs

        before = sample()
        made_for = circumstances(target, drafter)
        save_cost(StepCost([1, 2, 4, 8], [1], [[1.0, 2.0, 4.0, 8.0]], [1], [0.1], made_for))
        # What is measured is made use of where no seed is given.
        assert (sample() == before) == (seed is not None)

    def test_generate_refuses_a_table_of_another_machine(self, target):
        drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
        cost = StepCost(**TABLE, made_for={**circumstances(target, drafter), "device": "cuda of another"})
        speculation = SpeculationConfig(policy=PrefixScheduler(step_cost=cost))
        with pytest.raises(ValueError, match="device: 'cuda of another' when it was measured, 'cpu .* now"):
            target.generate(make_prompt(4), assistant_model=drafter, speculation=speculation, max_new_tokens=4)

    @pytest.mark.parametrize("additive", [True, False])
    def test_both_forms_of_sglang(self, additive, tmp_path):
        cost = StepCost(**TABLE)
        content = to_sglang(cost, additive=additive)
        path = tmp_path / "sps.json"
        path.write_text(json.dumps(content))
        back = load_cost(path)
        own = cost.verify(20, 100) if additive else cost.verify(20, 100) + 0.1
        assert back.verify(16)[1:] == pytest.approx(own[1:17])
        assert back.draft(8) == (0.4 if additive else 0.0)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                "{}",
                "cost.json is no step cost: It is neither what `dspark profile` writes nor one of SGLang's two forms",
            ),
            ('{"sample_batch_tokens": [1]}', "cost.json is no step cost: It has no list sample_steps_per_sec"),
            (
                '{"bias_seconds": null, "theta_seconds": [1], "bs_probes": [1], "alpha_seconds": [0], "m_probes": []}',
                r"bias_seconds and theta_seconds must be numbers, got None and \[1\]",
            ),
            ('{"bias_seconds": 1.0}', "has no list bs_probes, alpha_seconds, m_probes, theta_seconds"),
            ('{"sample_batch_tokens": [1], "sample_steps_per_sec": [0]}', r"sample_steps_per_sec must be positive"),
            (
                '{"verify_seconds": [[1.0]], "tokens": [1], "speed": 2}',
                r"is no step cost: It has no contexts, rows, draft_seconds. It has \['speed'\]. Its fields",
            ),
            ("[]", "must hold a JSON object"),
        ],
    )
    def test_what_is_no_file_of_costs(self, content, message, tmp_path):
        path = tmp_path / "cost.json"
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            load_cost(path)


@pytest.mark.clock
@pytest.mark.cost
class TestLog:
    BASE = StepCost([1, 2, 4, 8], [1], [[1.0, 1.1, 1.2, 1.4]], [1, 8], [0.2, 0.4])

    def log(self, seconds, draft=0.04, num_times=4):
        log = CostLog()
        for _ in range(num_times):
            for num_tokens, value in seconds.items():
                log.note(self.BASE, 1, num_tokens, 10, value, None if num_tokens == 1 else draft)
        return log

    def test_rounds_correct_a_table(self):
        cost = self.log({1: 0.1, 6: 0.2}).corrected(self.BASE)
        assert cost.verify(8)[[1, 6]] == pytest.approx([0.1, 0.2]) and cost.draft(1) == pytest.approx(0.04)
        # Between them, and past them, as the table has it.
        assert 0.1 < cost.verify(8)[3] < 0.2 and cost.verify(8)[8] == pytest.approx(0.2)

    def test_a_log_is_of_one_table(self, monkeypatch):
        monkeypatch.setattr(CostLog, "_logs", {})
        other = StepCost([1, 2, 4, 8], [1], [[1.0, 1.1, 1.2, 1.5]], [1, 8], [0.2, 0.4])
        here = CostLog.of({"device": "here"}, self.BASE)
        assert CostLog.of({"device": "here"}, replace(self.BASE)) is here
        assert CostLog.of({"device": "here"}, other) is not here and CostLog.of({}, self.BASE) is not here

    def test_times_without_measure_make_no_table_without_measure(self):
        base = StepCost([1, 2], [1], [[1e-9, 1e9]], [1], [1e-9])
        log = CostLog()
        for _ in range(4):
            log.note(base, 1, 1, 10, 1e9, None)
            log.note(base, 1, 2, 10, 0.0, 1e9)
        cost = log.corrected(base)
        assert cost.verify(2).tolist() == [0.0, 1e9, 1e-9] and cost.draft(1) == 1e9

    def test_few_rounds_correct_nothing(self):
        assert self.log({1: 0.1, 6: 0.2}, num_times=2).corrected(self.BASE) is self.BASE
        assert self.log({1: 0.1}).corrected(self.BASE) is self.BASE

    def test_a_pass_that_had_to_wait_does_not_matter(self):
        log = self.log({1: 0.1, 6: 0.2})
        log.note(self.BASE, 1, 6, 10, 50.0, 0.04)
        assert log.corrected(self.BASE).verify(6)[6] == pytest.approx(0.2)

    def test_a_size_that_seemed_slow_is_seen_again(self):
        # A whole stretch in which something else ran: later rounds outvote it, and in the end it is forgotten.
        log = self.log({6: 5.0}, num_times=8)
        for _ in range(12):
            log.note(self.BASE, 1, 1, 10, 0.1, None)
            log.note(self.BASE, 1, 6, 10, 0.2, 0.04)
        assert log.corrected(self.BASE).verify(6)[6] == pytest.approx(0.2)
        log = self.log({6: 5.0}, num_times=8)
        for _ in range(5000):
            log.note(self.BASE, 1, 1, 10, 0.1, None)
        for _ in range(4):
            log.note(self.BASE, 1, 2, 10, 0.11, 0.04)
        assert log.corrected(self.BASE).verify(6)[6] < 0.2

    def test_plain_steps_are_made_at_fixed_intervals(self):
        log, made = CostLog(), []
        for index in range(400):
            is_plain = log.wants_plain(1, 100)
            made += [index] * is_plain
            log.note(self.BASE, 1, 1 if is_plain else 6, 10, 0.1, None if is_plain else 0.04)
        assert made == [2, 11, 20, 149, 278]
        assert not log.wants_plain(1, 20)

    def test_a_call_corrects_the_next_and_not_itself(self, target, monkeypatch):
        monkeypatch.setattr(CostLog, "_logs", {})
        ids, now = make_prompt(6), [0.0]
        drafter, plain = greedy_oracle(target, ids, [1, 2], max_new_tokens=120)
        monkeypatch.setattr(time, "perf_counter", lambda: now[0])
        verify = FlatRunner.verify

        def timed_verify(runner, ids, lens, draft_lens):
            now[0] += 1.0 + 0.9 * sum(draft_lens)
            return verify(runner, ids, lens, draft_lens)

        propose = type(drafter).propose

        def timed_propose(*args, **kwargs):
            now[0] += 0.3
            return propose(*args, **kwargs)

        monkeypatch.setattr(FlatRunner, "verify", timed_verify)
        monkeypatch.setattr(type(drafter), "propose", timed_propose)
        verified, options = [], {"max_new_tokens": 120, "do_sample": False}
        for seed in (None, None, 3):
            speculation = SpeculationConfig(prompt_lookup=False, seed=seed)
            out = target.generate(ids, assistant_model=drafter, speculation=speculation, **options)
            assert out.tolist() == plain.tolist()
            verified.append(drafter.last_stats.verified_tokens)
        # A draft takes nearly a whole step here, which the rule of thumb does not know, and a seed keeps to the rule.
        assert verified[1] < 0.6 * verified[0] and verified[2] > 0.8 * verified[0]
