"""Figures from records: each checked against what is counted by hand."""

import json

import pytest

from dspark_hf import SpeculationStats
from dspark_hf.evaluation import Call, Run, figures, summarize
from dspark_hf.evaluation.figures.confidence import confidence_figures, threshold_sweep
from dspark_hf.evaluation.figures.intervals import bootstrap
from dspark_hf.evaluation.figures.summary import seconds_in_parts, time_share
from dspark_hf.evaluation.reporting.cells import signed_with_interval
from dspark_hf.evaluation.reporting.tables import main_tables

WAYS = {"plain": {}, "drafter": {"speculation": {}}, "other": {"speculation": {}}}
MADE_WITH = {"ways": {}, "dtype": "float32", "template": None, "settings": {"max_new_tokens": 4}}


def made_up_run(ids, seconds, rounds) -> Run:
    """A run whose rounds are (accepted, emitted) pairs of two verified slots each."""
    stats = SpeculationStats(rounds=len(rounds), target_seconds=3.0, drafter_seconds=1.0, prefill_seconds=0.5)
    stats.total_seconds = 5.0
    for accepted_len, emitted_len in rounds:
        stats.record(0, 2, accepted_len, emitted_len)
    return Run(ids, seconds, stats, peak_bytes=2**20)


def made_up_call(seconds, rounds, *, index=0, task="task", category=None, other=None, temperature=0.0) -> Call:
    plain = Run([[1, 2, 3, 4]], 4.0)
    differences = {"drafter": [other]} if temperature == 0 else {}
    prompts = [{"index": index, "category": category, "ids": [9]}]
    runs = {"drafter": made_up_run([[1, 2, 3, 4]], seconds, rounds), "plain": plain}
    return Call(task, 0, temperature, 1, index, prompts, runs, differences, {})


def test_figures_of_two_calls():
    result = figures([made_up_call(4.0, [(0, 1), (1, 2)]), made_up_call(1.0, [(2, 3)], index=1)], "drafter")
    assert result["tau"] == pytest.approx((1 + 2 + 3) / 3) and result["num_rounds"] == 3
    assert result["accepted_per_slot"] == pytest.approx([2 / 3, 1 / 3])
    assert result["accepted_per_slot_given_previous"] == pytest.approx([2 / 3, 1 / 2])
    assert (result["verify_rate"], result["acceptance"]) == (1.0, 3 / 6)
    assert result["ratio"]["median"] == pytest.approx((1.0 + 4.0) / 2)
    assert result["ratio"]["total"] == pytest.approx((8 / 5) / (8 / 8))
    low, high = result["ratio"]["total_interval"]
    # Of the two calls: one of them twice, or both.
    assert (low, high) == (pytest.approx(1.0, abs=0.01), pytest.approx(4.0, abs=0.01)) and low < 1.6 < high
    low, high = result["ratio"]["interval"]
    assert (low, high) == pytest.approx((1.0, 4.0))
    # Of the prompts, one has tau 1.5 and the other 3.
    assert result["tau_interval"] == pytest.approx([1.5, 3.0])
    assert result["time_share"] == pytest.approx({"target": 6 / 9, "drafter": 2 / 9, "rest": 1 / 9})
    assert result["seconds_in"]["outside"] == pytest.approx(5.0 - 10.0)
    assert result["identical"] == {"num_identical": 2, "num_answers": 2, "differences": []}
    assert (result["num_prompts"], result["num_calls"], result["peak_bytes"]) == (2, 2, 2**20)
    assert figures([made_up_call(1.0, [(2, 3)])], "plain")["ratio"] is None


def test_turns_of_a_conversation_are_one_prompt():
    turns = [made_up_call(1.0, [(0, 1)]), made_up_call(1.0, [(2, 3)])]
    assert figures(turns, "drafter")["tau_interval"] is None
    result = figures([*turns, made_up_call(1.0, [(2, 3)], index=1)], "drafter")
    # Of the prompts, one has tau 2, its worse turn notwithstanding, and the other 3.
    assert result["tau_interval"] == pytest.approx([2.0, 3.0])
    # So it is where passes alone were counted.
    for call in turns:
        call.runs["lookup"] = Run([[1, 2, 3, 4]], 1.0, num_passes=3)
    assert figures(turns, "lookup")["tau_interval"] is None


def test_two_drafters_are_compared_on_the_same_prompts():
    """Whose own intervals overlap: an easy prompt and a hard one, each with half a token more of one of them."""
    calls = [made_up_call(1.0, [(0, 1), (0, 1)]), made_up_call(1.0, [(2, 3), (1, 2)], index=1)]
    for call, rounds in zip(calls, ([(0, 1), (1, 2)], [(2, 3), (2, 3)]), strict=True):
        call.runs["other"] = made_up_run([[1, 2, 3, 4]], 1.0, rounds)
    # An answer of the first alone does not count, nor does what has no rounds.
    calls.append(made_up_call(1.0, [(2, 3)], index=2))
    rows = {row["way"]: row for row in summarize(calls, WAYS)["rows"]}
    assert rows["drafter"]["tau_against"] is None and rows["plain"]["tau_against"] is None
    against = rows["other"]["tau_against"]
    assert (against["way"], against["num_prompts"]) == ("drafter", 2)
    assert against["difference"] == pytest.approx(0.5) and against["interval"] == pytest.approx([0.5, 0.5])
    assert rows["drafter"]["tau_interval"][1] > rows["other"]["tau_interval"][0]
    (shown,) = [
        table for table in main_tables({"rows": [*rows.values()], "made_with": MADE_WITH}) if "Diff" in table.title
    ]
    assert shown.rows == [["task", "0", "1", "other", "drafter", "2", "+0.50 [+0.50, +0.50]"]]


def test_drafters_are_compared_under_the_same_speculation():
    alone, short = {"speculation": {}}, {"speculation": {"max_draft_len": 1}}
    ways = {"plain": {}, "idle": alone, "a": alone, "a, short": short, "b": alone, "b, short": short}
    call = made_up_call(1.0, [(0, 1)])
    for way, rounds in (
        ("idle", []),
        ("a", [(0, 1)]),
        ("a, short", [(1, 2)]),
        ("b", [(2, 3)]),
        ("b, short", [(0, 1)]),
    ):
        call.runs[way] = made_up_run([[1, 2, 3, 4]], 1.0, rounds)
    rows = {row["way"]: row["tau_against"] for row in summarize([call], ways)["rows"]}
    # What has no rounds is compared with nothing.
    assert rows["plain"] is rows["idle"] is rows["a"] is None
    found = {way: (row["way"], row["difference"]) for way, row in rows.items() if row is not None}
    assert found == {"a, short": ("a", 1.0), "b": ("a", 2.0), "b, short": ("a, short", -1.0)}


def test_a_difference_that_rounds_to_nothing_has_no_sign_of_its_own():
    assert signed_with_interval(-0.001, [-0.004, 0.3]) == "+0.00 [+0.00, +0.30]"
    assert signed_with_interval(-0.006, None) == "-0.01"


def test_differences_are_told_with_their_place():
    other = {"position": 3, "gap": 0.1, "spacing": 0.5}
    result = figures([made_up_call(1.0, [(1, 2)], index=7, other=other), made_up_call(1.0, [(1, 2)])], "drafter")
    identical = result["identical"]
    assert (identical["num_identical"], identical["num_answers"]) == (1, 2)
    assert identical["differences"] == [{"task": "task", "prompt": 7, "turn": 0, **other}]
    assert figures([made_up_call(1.0, [(1, 2)], temperature=1.0)], "drafter")["identical"] is None


def test_rows_are_by_task_category_and_all_together():
    calls = [
        made_up_call(1.0, [(0, 1)], task="a"),
        made_up_call(1.0, [(2, 3)], task="b", category="x"),
        made_up_call(1.0, [(1, 2)], task="b", category="y", index=1),
        made_up_call(1.0, [(1, 2)], task="a", temperature=1.0),
    ]
    rows = summarize(calls, {"plain": {}, "drafter": {}}, {"a": {"cut": "1 of 9"}})["rows"]
    drafted = [row for row in rows if row["way"] == "drafter"]
    found = [(row["task"], row["category"], row["temperature"], row["cut"], row["tau"]) for row in drafted]
    assert found == [
        ("a", None, 0.0, "1 of 9", 1.0),
        ("b", None, 0.0, None, 2.5),
        ("b", "x", 0.0, None, 3.0),
        ("b", "y", 0.0, None, 2.0),
        ("all tasks", None, 0.0, None, 2.0),
        ("a", None, 1.0, "1 of 9", 2.0),
        ("all tasks", None, 1.0, None, 2.0),
    ]
    assert json.loads(json.dumps(rows))


def test_passes_tell_tau_where_there_are_no_rounds():
    calls = [made_up_call(1.0, [(0, 1)]), made_up_call(1.0, [(0, 1)], index=1)]
    for call, num_passes in zip(calls, (4, 3), strict=True):
        # Three tokens behind the prompt's pass, in three passes and in two.
        call.runs["lookup"] = Run([[1, 2, 3, 4]], 1.0, num_passes=num_passes)
    result = figures(calls, "lookup")
    assert result["tau"] == pytest.approx(6 / 5) and result["num_rounds"] == 5
    assert result["accepted_per_slot"] is None and result["confidence"] is None


def test_time_that_was_not_measured_is_not_invented():
    assert seconds_in_parts([Run([[1]], 1.0, SpeculationStats())]) is None
    assert seconds_in_parts([Run([[1]], 1.0)]) is None
    assert time_share(None) is None


def test_confidence_against_what_stood():
    stats = SpeculationStats(confidences=[[0.9, 0.2], [0.8, 0.6], [0.3]])
    for verified_len, accepted_len, emitted_len in ((2, 1, 2), (2, 2, 3), (1, 0, 1)):
        stats.record(0, verified_len, accepted_len, emitted_len)
    result = confidence_figures(stats)
    # Stood: 0.9, 0.8, 0.6; refused: 0.2, 0.3. Every one that stood is above every one that did not.
    assert (result["num_judged"], result["auroc"]) == (5, 1.0)
    assert result["brier"] == pytest.approx((0.01 + 0.04 + 0.04 + 0.16 + 0.09) / 5)
    assert result["ece"] == pytest.approx((0.1 + 0.2 + 0.2 + 0.4 + 0.3) / 5)
    assert confidence_figures(SpeculationStats()) is None
    only = SpeculationStats(confidences=[[0.9]])
    only.record(0, 1, 1, 2)
    assert confidence_figures(only)["auroc"] is None


def test_thresholds_give_up_what_they_cut():
    stats = SpeculationStats(confidences=[[0.9, 0.5], [0.4, 0.9], [0.9, 0.9], [0.9]])
    for verified_len, accepted_len, emitted_len in ((2, 1, 2), (2, 2, 3), (2, 2, 2)):
        stats.record(0, verified_len, accepted_len, emitted_len)
    # Cut by a policy already: it does not tell what more would have done.
    stats.record(0, 1, 1, 2, drafted_len=2)
    whole, half = threshold_sweep(stats, (0.0, 0.5))
    assert whole == {"threshold": 0.0, "verified": 2.0, "verify_rate": 1.0, "tau": 1 + (1 + 2) / 2}
    # Survivals 0.9, 0.45 and 0.4, 0.36: one draft is left, which stood. The third round ended with the text.
    assert half == {"threshold": 0.5, "verified": 0.5, "verify_rate": 0.25, "tau": 1 + 1 / 2}
    assert threshold_sweep(SpeculationStats()) == []


def test_bootstrap_holds_the_figure():
    low, high = bootstrap(lambda some: some.mean(), [1.0, 2.0, 3.0, 4.0] * 10)
    assert 2.0 < low < 2.5 < high < 3.0
    assert bootstrap(lambda some: some.mean(), [1.0]) is None
