"""What trackers keep of a run, read back from their own files."""

import json

import pytest

EVALUATION = {"eval_strategy": "steps", "eval_steps": 2, "num_eval_prompts": 2, "eval_max_new_tokens": 6}
NAMES = {
    "train/loss",
    "train/learning_rate",
    "train/grad_norm",
    "train/cross_entropy",
    "train/l1",
    "train/expected_tau",
    "train/expected_accept_slot_4",
    "train/confidence_error",
    "train/tokens_per_second",
    "train/eta_seconds",
    "eval/loss",
    "eval/tau",
    "eval/accept_rate_slot_1",
    "eval/expected_tau",
    "eval/expected_accept_slot_1",
}


@pytest.fixture
def run(make_trainer, rows, tmp_path):
    """`run(tracker)`: a run of four steps and two evaluations; what the trainer itself logged, by tag and step."""

    def run(tracker):
        trainer = make_trainer(
            tmp_path / "out", rows, eval_rows=rows[:4], report_to=tracker, run_name="run", **EVALUATION
        )
        trainer.train()
        logged = {}
        for entry in trainer.state.log_history:
            if "train_runtime" in entry:  # the summary at the end, which each tracker files in a way of its own
                continue
            step = entry.pop("step")
            for name, value in entry.items():
                name = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
                logged.setdefault(name, {})[step] = value
        assert NAMES <= set(logged)
        assert set(logged["train/loss"]) == {1, 2, 3, 4} and set(logged["eval/tau"]) == {2, 4}
        return logged

    return run


def test_tensorboard(run, tmp_path, monkeypatch):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    logged = run("tensorboard")
    events = accumulators.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert set(logged) <= set(events.Tags()["scalars"])
    for name, values in logged.items():
        kept = {event.step: event.value for event in events.Scalars(name)}
        assert kept == pytest.approx(values, rel=1e-6), name
    config = json.loads(events.Tensors("model_config/text_summary")[0].tensor_proto.string_val[0])
    assert config["markov_rank"] == 8


def test_trackio(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage")
    logged = run("trackio")
    history = {}
    for entry in storage.SQLiteStorage.get_logs("huggingface", "run"):
        history.setdefault(entry["train/global_step"], {}).update(entry)
    for name, values in logged.items():
        assert {step: history[step][name] for step in values} == pytest.approx(values), name


def test_wandb(run, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged = run("wandb")
    kept = dict(wandb.run.summary)
    for name, values in logged.items():
        assert kept[name] == pytest.approx(values[max(values)]), name
    wandb.finish()
    written = next(tmp_path.glob("wandb/offline-run-*/*.wandb")).read_bytes()
    assert all(name.encode() in written for name in logged)
