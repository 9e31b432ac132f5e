"""One evaluation of real tiny models: what is kept, how it goes on, and what is refused."""

import copy
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from dspark_hf import AutoDrafter, DFlashModel, Eagle3Model, SpeculationConfig
from dspark_hf.evaluation import (
    EvaluationSettings,
    LoadedTask,
    Question,
    RunFolder,
    assistant_way,
    drafter_way,
    evaluate,
    lookup_way,
    place_among_processes,
    plain_way,
    static_way,
    synthetic_way,
)
from dspark_hf.evaluation.diagnosis.texts import Texts
from dspark_hf.evaluation.running.records import rounds_of, stats_of
from dspark_hf.evaluation.running.ways import speculation_fields


def question(index, *turns, category=None):
    return Question(index, [[{"role": "user", "content": turn}] for turn in turns], category)


TASK = LoadedTask(
    "chat", [question(0, "Name three."), question(1, "Hello.", "Again?"), question(2, "abcabcabcabc")], 3
)


@pytest.fixture(scope="module")
def target(tiny_target_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_target_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def drafter(target, tiny_drafter_dir):
    return AutoDrafter.from_pretrained(tiny_drafter_dir).eval().bind(target)


@pytest.fixture
def run(target, tiny_tokenizer):
    def run_ways(ways, *args, task=TASK, settings=None, **kwargs):
        settings = settings or EvaluationSettings(max_new_tokens=12)
        return evaluate(target, tiny_tokenizer, [task], ways, settings, *args, **kwargs)

    return run_ways


def rows_of(summary, **wanted):
    return [row for row in summary["rows"] if all(row[name] == value for name, value in wanted.items())]


def test_every_way_answers_the_same_prompts(run, target, drafter, tmp_path):
    ways = [drafter_way("d", drafter), plain_way(), lookup_way(3), assistant_way("itself", copy.deepcopy(target)),
            drafter_way("d", drafter, "alone")]  # fmt: skip
    settings = EvaluationSettings(max_new_tokens=40, temperatures=(0.0, 1.0), batch_sizes=(1, 2))
    summary = run(ways, tmp_path / "run", settings=settings)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    greedy = rows_of(summary, temperature=0.0, batch_size=1)
    assert [row["way"] for row in greedy] == ["d", "plain", "prompt lookup (3)", "assistant itself", "d, alone"]
    assert {row["num_answers"] for row in greedy} == {4} and {row["num_prompts"] for row in greedy} == {3}
    for row in greedy:
        if row["way"] != "plain":
            assert row["identical"]["num_identical"] == row["identical"]["num_answers"] == 4
    # One prompt at a time is what transformers' own ways take, and a target that assists itself is always right.
    assert [row["way"] for row in rows_of(summary, temperature=0.0, batch_size=2)] == ["d", "plain", "d, alone"]
    assert rows_of(summary, way="assistant itself", temperature=0.0)[0]["tau"] > 2
    assert rows_of(summary, way="d", temperature=0.0, batch_size=1)[0]["lookup_share"] > 0
    assert rows_of(summary, way="d, alone", temperature=0.0, batch_size=1)[0]["lookup_share"] == 0
    assert rows_of(summary, temperature=1.0, way="d")[0]["identical"] is None


def test_figures_are_made_again_from_the_records(run, drafter, tmp_path):
    out = tmp_path / "run"
    summary = run([drafter_way("d", drafter), plain_way()], out)
    (out / "summary.json").unlink()
    again = RunFolder(out).summary()
    assert json.loads(json.dumps(again["rows"])) == json.loads(json.dumps(summary["rows"]))
    _, calls, _ = RunFolder(out).read()
    call = calls[0]
    rounds = rounds_of(call.runs["d"].stats)
    assert 1 + sum(one["emitted"] for one in rounds) == len(call.runs["d"].ids[0])
    for one in rounds:
        assert len(one["drafts"]) == one["verified"] <= one["drafted"] and len(one["confidence"]) in (
            0,
            one["drafted"],
        )
        assert one["source"] in ("drafter", "lookup", None)
    # What stood is what was drafted, and stands in the answer.
    place = 1
    for one in rounds:
        assert call.runs["d"].ids[0][place : place + one["accepted"]] == one["drafts"][: one["accepted"]]
        place += one["emitted"]
    text = RunFolder(out).tokens()
    assert set(call.runs["d"].ids[0]) | set(call.prompts[0]["ids"]) <= set(text)


def test_stats_survive_their_record(target, drafter, tiny_tokenizer):
    inputs = tiny_tokenizer("u:Count\na:", return_tensors="pt", return_token_type_ids=False)
    speculation = SpeculationConfig(record_drafts=True, confidence_threshold=0.6, prompt_lookup=False)
    target.generate(**inputs, assistant_model=drafter, max_new_tokens=16, speculation=speculation, do_sample=False)
    stats = drafter.last_stats
    assert len(stats.draft_ids) == len(stats.verified_lens) == len(stats.drafted_lens)
    assert any(drafted > verified for drafted, verified in zip(stats.drafted_lens, stats.verified_lens, strict=True))
    totals = {"rounds": stats.rounds, "new_tokens": stats.new_tokens}
    again = stats_of(json.loads(json.dumps(rounds_of(stats))), totals)
    names = ("verified_lens", "accepted_lens", "emitted_lens", "row_ids", "from_lookup", "drafted_lens", "draft_ids")
    for name in names:
        assert getattr(again, name) == getattr(stats, name)
    target.generate(**inputs, assistant_model=drafter, max_new_tokens=16, do_sample=False)
    assert drafter.last_stats.draft_ids == []


def test_conversations_go_on_behind_the_plain_answer(run, drafter, tiny_tokenizer, tmp_path):
    task = LoadedTask("chat", [question(0, "Hello.", "Again?")], 1)
    run([drafter_way("d", drafter), plain_way()], tmp_path / "run", task=task)
    _, calls, _ = RunFolder(tmp_path / "run").read()
    answer = tiny_tokenizer.decode(calls[0].runs["plain"].ids[0], skip_special_tokens=True)
    messages = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": answer},
                {"role": "user", "content": "Again?"}]  # fmt: skip
    text = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert calls[1].prompts[0]["ids"] == tiny_tokenizer(text)["input_ids"] and calls[1].turn == 1


def test_ways_take_turns_in_going_first_after_a_warm_up(run, target, drafter, tmp_path, monkeypatch):
    generate, lens = type(target).generate, []

    def watched(self, *args, **kwargs):
        lens.append(kwargs["max_new_tokens"])
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(target), "generate", watched)
    run([drafter_way("d", drafter), plain_way()], tmp_path, settings=EvaluationSettings(max_new_tokens=20))
    _, calls, _ = RunFolder(tmp_path).read()
    assert [next(iter(call.runs)) for call in calls if call.turn == 0] == ["d", "plain", "d"]
    assert lens == [16, 16] + [20] * 8


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        *(("dspark", rate) for rate in (0.0, 0.7, 1.0)),
        *((kind, 0.7) for kind in (DFlashModel, Eagle3Model)),
        *(
            pytest.param(kind, rate, marks=pytest.mark.slow)
            for kind in (DFlashModel, Eagle3Model)
            for rate in (0.0, 1.0)
        ),
    ],
)
def test_drafts_stand_at_a_chosen_rate(run, target, drafter, kind, rate):
    if kind != "dspark":
        drafter = kind.from_target(target, target_layer_ids=[0, 1, 2]).eval()
    settings = EvaluationSettings(max_new_tokens=48, batch_sizes=(3,))
    task = LoadedTask("t", [question(index, f"Count to {index}.") for index in range(6)], 6)
    summary = run([plain_way(), synthetic_way("d", drafter, rate)], task=task, settings=settings)
    (row,) = rows_of(summary, way=f"synthetic {rate:g}")
    assert row["identical"]["num_identical"] == 6
    rates = row["accepted_per_slot_given_previous"]
    assert rates[0] == pytest.approx(rate, abs=0.0 if rate in (0.0, 1.0) else 0.12)
    if rate == 1.0:
        assert set(rates) == {1.0}


def test_a_stopped_run_goes_on(run, drafter, tmp_path):
    ways, out = [drafter_way("d", drafter), plain_way()], tmp_path / "run"

    def stop(num_done, num_all, name):
        if num_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ways, out, report=stop)
    kept = (out / "records-0.jsonl").read_bytes()
    assert RunFolder(out).tokens()
    with pytest.raises(ValueError, match="is what an earlier run left. Go on with --resume"):
        run(ways, out)
    partial = RunFolder(out).summary()
    assert partial["num_missing"] == 1 and rows_of(partial, way="d")[0]["num_prompts"] == 2
    with pytest.raises(ValueError, match="made otherwise .*max_new_tokens: 12 before, 13 now"):
        run(ways, out, settings=EvaluationSettings(max_new_tokens=13), resume=True)
    summary = run(ways, out, resume=True)
    assert (out / "records-0.jsonl").read_bytes().startswith(kept)
    assert rows_of(summary, way="d")[0]["num_prompts"] == 3 and summary["num_missing"] == 0


def test_processes_share_the_calls(run, drafter, tmp_path):
    ways, out = [drafter_way("d", drafter), plain_way()], tmp_path / "run"
    first = run(ways, out, rank=0, num_processes=2)
    assert first["num_missing"] == 2 and not (out / "summary.json").exists()
    last = run(ways, out, rank=1, num_processes=2)
    assert (last["num_missing"], last["num_files"]) == (0, 2) and (out / "summary.json").exists()
    assert rows_of(last, way="d")[0]["num_prompts"] == 3
    alone = run(ways, tmp_path / "alone")
    with pytest.raises(ValueError, match="Of 1 processes there is none of rank 1, .* unset RANK"):
        run(ways, tmp_path / "other", rank=1)
    assert rows_of(alone, way="d")[0]["tau"] == rows_of(last, way="d")[0]["tau"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs a C++ compiler")
def test_a_static_cache_with_compiled_passes_is_a_rival(run):
    task = LoadedTask("t", TASK.questions[:1], 1)
    summary = run([plain_way(), static_way()], task=task, settings=EvaluationSettings(max_new_tokens=6))
    (row,) = rows_of(summary, way="plain, static + compile")
    assert row["identical"] == {"num_identical": 1, "num_answers": 1, "differences": []}
    assert row["ratio"]["num_calls"] == 1


def test_pieces_are_timed_beside_the_calls(run, drafter):
    settings = EvaluationSettings(max_new_tokens=8, time_pieces=True)
    summary = run([drafter_way("d", drafter, "alone"), drafter_way("d", drafter), plain_way()], settings=settings)
    (alone,) = rows_of(summary, way="d, alone")
    assert len(alone["efficiency"]["calls"]) == 4 and alone["efficiency"]["verify_seconds"] > 0
    assert rows_of(summary, way="d")[0]["efficiency"] is None


@pytest.mark.parametrize("has_one", [True, False])
def test_without_template_only_first_turns_are_asked(run, tiny_tokenizer, tmp_path, monkeypatch, has_one):
    if not has_one:
        monkeypatch.setattr(tiny_tokenizer, "chat_template", None)
    settings = EvaluationSettings(max_new_tokens=4, template=not has_one)
    summary = run([plain_way()], tmp_path / "run", settings=settings)
    _, calls, _ = RunFolder(tmp_path / "run").read()
    assert [call.prompts[0]["ids"] for call in calls][1] == tiny_tokenizer("Hello.")["input_ids"]
    assert len(calls) == 3 and summary["made_with"]["template"] is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperatures": (-1.0,)}, "temperature must be 0 .*got -1.0"),
        ({"temperatures": (float("nan"),)}, "temperature must be 0 .*got nan"),
        ({"temperatures": ()}, "temperatures must be one or more different numbers"),
        ({"batch_sizes": (2, 2)}, r"batch_sizes must be one or more different numbers, got \[2, 2\]"),
        ({"batch_sizes": (0,)}, "batch_sizes must be at least 1, got 0"),
        ({"seed": 2**64}, "seed must be a number of 64 bits, got 18446744073709551616"),
        ({"template": False, "thinking": True}, "thinking and reasoning_effort are the chat template's"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**fields)


def test_what_cannot_be_run_is_refused(run, drafter, tmp_path):
    with pytest.raises(ValueError, match="needs a task and a way to generate, got 1 and 0"):
        run([])
    with pytest.raises(ValueError, match="Two ways to generate are called 'd'"):
        run([drafter_way("d", drafter), drafter_way("d", drafter)])
    with pytest.raises(ValueError, match="need the plain run, which says what stands"):
        run([synthetic_way("d", drafter, 0.5)])
    with pytest.raises(ValueError, match="time_pieces compares with the plain run"):
        run([drafter_way("d", drafter)], settings=EvaluationSettings(time_pieces=True))
    with pytest.raises(ValueError, match="No way takes T 0 at batch size 2. Add plain runs"):
        run([lookup_way(3)], settings=EvaluationSettings(batch_sizes=(2, 1)))
    with pytest.raises(ValueError, match=r"'prompt lookup \(3\)' would sit out .* takes batch size 1 only, .* \[2\]"):
        run([plain_way(), lookup_way(3)], settings=EvaluationSettings(batch_sizes=(2,)))
    with pytest.raises(ValueError, match=r"'synthetic 0.5' would sit out .* takes temperature 0 only, got .* \[1.0\]"):
        run([plain_way(), synthetic_way("d", drafter, 0.5)], settings=EvaluationSettings(temperatures=(1.0,)))
    with pytest.raises(ValueError, match="makes the same prompt with and without --thinking"):
        run([plain_way()], settings=EvaluationSettings(thinking=True))
    with pytest.raises(ValueError, match="rate from 0 to 1, got 1.5"):
        synthetic_way("d", drafter, 1.5)
    with pytest.raises(ValueError, match="'plain' is the baseline's name. Give the drafter another one: NAME=PLACE"):
        run([drafter_way("plain", drafter)])
    with pytest.raises(ValueError, match="'all tasks' is what tables call all of them. Give the task another name"):
        run([plain_way()], task=LoadedTask("all tasks", TASK.questions, 3))
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=f"A run needs a folder, got {out}, but {tmp_path / 'file'} is no folder"):
            run([plain_way()], out)


def test_what_is_no_run_is_told(run, tmp_path):
    (tmp_path / "good.jsonl").write_text("{}\n")
    for place, told in ((tmp_path, "holds none"), (tmp_path / "good.jsonl", "is a file"),
                        (tmp_path / "none", "is not there")):  # fmt: skip
        with pytest.raises(
            ValueError, match=f"A run is a folder that `dspark evaluate --out` filled, and {place} {told}"
        ):
            RunFolder(place).summary()
    run([plain_way()], tmp_path / "run", task=LoadedTask("t", TASK.questions[:1], 1))
    with pytest.raises(ValueError, match=f"is a file. Give the folder {tmp_path / 'run'}."):
        RunFolder(tmp_path / "run" / "records-0.jsonl").summary()


def test_figures_that_are_damaged_or_gone_come_from_the_records(run, tmp_path):
    out, task = tmp_path / "run", LoadedTask("t", TASK.questions[:1], 1)
    before = run([plain_way()], out, task=task)
    file = out / "summary.json"
    for content in (file.read_text()[:100], "{}", json.dumps({**before, "made_with": {"format": 9}})):
        file.write_text(content)
        with pytest.raises(ValueError, match="Remove summary.json: `dspark report` makes it again from the records"):
            RunFolder(out).summary()
    file.unlink()
    again = RunFolder(out).summary()
    assert again == {**before, "provenance": None} and json.loads(file.read_text()) == again


def test_a_conversation_that_was_broken_off_is_not_whole(run, drafter, tmp_path):
    out, task = tmp_path / "run", LoadedTask("t", [TASK.questions[1]], 1)
    run([plain_way()], out, task=task)
    records = (out / "records-0.jsonl").read_text().splitlines(keepends=True)
    (out / "records-0.jsonl").write_text("".join(records[:-1]))
    (out / "summary.json").unlink()
    assert RunFolder(out).summary()["num_missing"] == 1 and not (out / "summary.json").exists()


def test_a_prompt_without_tokens_is_told_before_any_is_asked(run, tmp_path):
    task = LoadedTask("t", [question(0, "Hello."), question(7, "")], 8)
    with pytest.raises(ValueError, match="^t, prompt 7: .* encodes to no tokens. Leave it out"):
        run([plain_way()], tmp_path / "run", task=task, settings=EvaluationSettings(template=False))
    assert not (tmp_path / "run").exists()


def test_a_prompt_beyond_a_table_of_positions_is_told_before_any_is_asked(tiny_tokenizer):
    config = GPT2Config(vocab_size=260, n_embd=8, n_layer=1, n_head=1, n_positions=16, eos_token_id=257)
    target, settings = GPT2LMHeadModel(config).eval(), EvaluationSettings(max_new_tokens=4, template=False)
    tasks = [LoadedTask("t", [question(0, "a" * 13), question(5, "a" * 14)], 6)]
    with pytest.raises(ValueError, match="^t, prompt 5: It has 14 tokens, and with 4 .* table of positions has, 16"):
        evaluate(target, tiny_tokenizer, tasks, [plain_way()], settings)
    tasks = [LoadedTask("t", tasks[0].questions[:1], 1)]
    assert evaluate(target, tiny_tokenizer, tasks, [plain_way()], settings)["rows"][0]["tokens"] == 4
    with pytest.raises(ValueError, match="It has 3 tokens, and with 64 of an answer"):
        Texts(target, [[1, 2, 3]])


def test_answers_of_one_token_have_no_rounds(run, drafter):
    summary = run([drafter_way("d", drafter), plain_way()], settings=EvaluationSettings(max_new_tokens=1))
    (row,) = rows_of(summary, way="d")
    assert (row["tau"], row["tau_interval"], row["num_rounds"]) == (None, None, 0)


def test_places_of_a_launcher_are_numbers(monkeypatch):
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE must be whole numbers, got 'first' and '1'"):
        place_among_processes()


def test_records_of_another_form_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr("dspark_hf.evaluation.running.evaluate.FORMAT", 2)
    monkeypatch.setattr("dspark_hf.evaluation.running.folder.FORMAT", 2)
    run([plain_way()], tmp_path / "run", task=LoadedTask("t", TASK.questions[:1], 1))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="records of form 2, and this version of dspark_hf reads form 1"):
        RunFolder(tmp_path / "run").read()


def test_speculation_is_fields_or_a_name():
    assert speculation_fields("default") == {}
    assert speculation_fields("max_draft_len=3,compile=false,verification=token,confidence_threshold=0.5") == {
        "max_draft_len": 3, "compile": False, "verification": "token", "confidence_threshold": 0.5,
    }  # fmt: skip
    assert speculation_fields("num_candidates=none") == {"num_candidates": None}
    for speculation in ("fast", "speed=3", "seed=1"):
        with pytest.raises(ValueError, match="is no way to speculate: give default or alone, or KEY=VALUE"):
            speculation_fields(speculation)
    with pytest.raises(ValueError, match="max_draft_len must be a positive int"):
        speculation_fields("max_draft_len=0")
