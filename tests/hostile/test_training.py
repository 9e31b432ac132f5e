"""Training stops at what is not finite, resumes from nothing odd, and has its folder for itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark_hf import DraftTrainer, DraftTrainingArguments, DSparkModel
from dspark_hf.data.features import TargetFeatures, hold_features
from dspark_hf.trainers.checkpoints import check_checkpoint
from dspark_hf.trainers.sole_run import sole_run

SCRIPT = Path(__file__).with_name("train_once.py")
NAN = float("nan")


@pytest.fixture
def make_trainer(target, rows, tmp_path):
    """`make_trainer(rows, **arguments)`: a trainer that saves after each of two steps, with features in memory."""

    def make(rows=rows, folder=tmp_path / "run", eval_rows=None, **arguments):
        torch.manual_seed(2)
        drafter = DSparkModel.from_target(
            target, num_hidden_layers=1, target_layer_ids=[1, 2], block_size=4, markov_rank=4
        )
        defaults = {"max_steps": 2, "save_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
                    "num_eval_prompts": 0, "per_device_train_batch_size": 4, "logging_steps": 1}  # fmt: skip
        args = DraftTrainingArguments(str(folder), **{**defaults, **arguments})
        return DraftTrainer(drafter, target, args, train_dataset=rows, eval_dataset=eval_rows)

    return make


@pytest.fixture
def bad_rows(target, rows):
    """Rows whose features are in memory, one of them with a NaN."""
    held = hold_features(TargetFeatures(target, [1, 2]), rows, progress=False)
    held[5]["features"][3, 3] = NAN
    return held


def saved(folder):
    return sorted(path.name for path in Path(folder).glob("checkpoint-*"))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_the_step(make_trainer, bad_rows, accumulation):
    trainer = make_trainer(bad_rows, max_steps=8, gradient_accumulation_steps=accumulation)
    message = (
        r"The loss of step \d is not finite \(process 0, batch \[\d\] of \d, in rows that begin with .*\[5, 6, 7,"
    )
    with pytest.raises(ValueError, match=message) as caught:
        trainer.train()
    step = trainer.state.global_step
    assert all(bool(weight.isfinite().all()) for weight in trainer.model.parameters())
    assert saved(trainer.args.output_dir) == [f"checkpoint-{number}" for number in range(1, step + 1)]
    known = f"the last checkpoint is kept: checkpoint-{step}" if step else "no checkpoint has been saved"
    assert known in str(caught.value) and not any(entry.get("loss") == 0 for entry in trainer.state.log_history)


def test_weights_that_are_not_finite_are_not_saved(make_trainer, tmp_path):
    # The loss of the only step is fine; what it makes of the weights is not.
    trainer = make_trainer(max_steps=1, learning_rate=1e38, max_grad_norm=0.0, optim="sgd", warmup_steps=0,
                           ce_weight=1e30)  # fmt: skip
    with pytest.raises(ValueError, match="The drafter of step 1 is not saved: it has weights that are not finite"):
        trainer.train()
    assert saved(tmp_path / "run") == []
    trainer = make_trainer(max_steps=1, learning_rate=1e38, max_grad_norm=0.0, optim="sgd", warmup_steps=0,
                           ce_weight=1e30, save_strategy="no")  # fmt: skip
    with pytest.raises(ValueError, match="The drafter of step 1 has weights that are not finite"):
        trainer.train()


@pytest.fixture
def checkpoint(make_trainer, tmp_path):
    """A run's folder, with checkpoints 1 and 2."""
    make_trainer().train()
    return tmp_path / "run" / "checkpoint-2"


def spoil_weights(path):
    weights = load_file(path / "model.safetensors")
    weights["fc.weight"][0, 0] = NAN
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def other_weights(path):
    weights = load_file(path / "model.safetensors")
    weights["fc.weight"] = weights["fc.weight"][:3].contiguous()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def spoil(name, change):
    def spoil_it(path):
        state = torch.load(path / name, weights_only=True)
        torch.save(change(state) or state, path / name)

    return spoil_it


STATES = {
    "NaN weights": (spoil_weights, "has weights that are not finite, e.g. .'fc.weight'"),
    "other weights": (other_weights, "are not this drafter's"),
    "NaN moments": (
        spoil("optimizer.pt", lambda state: state["state"][0].update(exp_avg=state["state"][0]["exp_avg"] * NAN)),
        "not finite in the state of optimizer",
    ),
    "NaN rate": (
        spoil("optimizer.pt", lambda state: state["param_groups"][0].update(lr=NAN)),
        "not finite in the state of optimizer",
    ),
    "NaN schedule": (
        spoil("scheduler.pt", lambda state: state.update(base_lrs=[NAN, NAN])),
        "not finite in the state of",
    ),
    "no groups": (
        spoil("optimizer.pt", lambda state: {"state": {}}),
        "is not this run's: KeyError",
    ),
    "a list": (spoil("optimizer.pt", lambda state: [1, 2]), "is not this run's"),
    "fewer groups": (
        spoil("optimizer.pt", lambda state: {**state, "param_groups": state["param_groups"][:1]}),
        "is not this run's",
    ),
}


def write_state(name, state):
    return lambda path: torch.save(state, path / name)


def break_entries(path):
    """An archive whose list of entries is whole, and nothing else."""
    state = path / "rng_state.pth"
    state.write_bytes(state.read_bytes().replace(b"PK\x03\x04", b"PK\x03\x05"))


STATES |= {
    "damaged numbers": (
        break_entries,
        r"rng_state.pth, is not this run's: (RuntimeError|UnpicklingError)[\s\S]*Without that file",
    ),
    "objects": (write_state("rng_state.pth", Path("x")), "rng_state.pth, is not this run's: UnpicklingError"),
    "no numbers": (write_state("rng_state.pth", {"python": 1}), "rng_state.pth, is not this run's: TypeError"),
    "a scale": (write_state("scaler.pt", {"scale": "x"}), "scaler.pt, is not this run's"),
}


def test_states_are_looked_at_when_a_run_goes_on(make_trainer, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "whole")
    for name, (change, message) in STATES.items():
        shutil.rmtree(checkpoint)
        shutil.copytree(tmp_path / "whole", checkpoint)
        change(checkpoint)
        with pytest.raises(ValueError, match=f"checkpoint-2.*{message}") as caught:
            make_trainer(max_steps=3).train(resume_from_checkpoint=str(checkpoint))
        assert caught.type is ValueError, name
    assert saved(checkpoint.parent) == ["checkpoint-1", "checkpoint-2"]


FIELDS = [
    {"global_step": -5}, {"global_step": 10**15}, {"global_step": 2.5}, {"global_step": True}, {"global_step": "2"},
    {"epoch": NAN}, {"epoch": float("inf")}, {"epoch": "x"}, {"epoch": None}, {"max_steps": -1}, {"max_steps": []},
    {"log_history": 7}, {"log_history": [7]}, {"stateful_callbacks": 3}, {"stateful_callbacks": "x"}, {"evil": 1},
    {"best_metric": "x"}, {"best_model_checkpoint": 5}, {"is_hyper_param_search": 1}, {"train_batch_size": "x"},
    {"num_input_tokens_seen": -1}, {"total_flos": NAN},
]  # fmt: skip


def test_trainer_states_are_checked_by_field(checkpoint):
    path = checkpoint / "trainer_state.json"
    whole = path.read_text()
    check_checkpoint(checkpoint)
    for change in FIELDS:
        path.write_text(json.dumps(json.loads(whole) | change))
        with pytest.raises(ValueError, match=f"trainer_state.json has {next(iter(change))}="):
            check_checkpoint(checkpoint)
    for text in ("[1]", "7", "", "{", "[" * 10**5):
        path.write_text(text)
        with pytest.raises(ValueError, match="no readable trainer_state.json"):
            check_checkpoint(checkpoint)
    path.write_text(json.dumps(json.loads(whole) | {"best_metric": -1.5, "logging_steps": 500.0}))
    check_checkpoint(checkpoint)


def start(*command, **arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    folder = str(command[-1])
    command = [sys.executable, *map(str, command[:-1]), str(SCRIPT), folder, json.dumps(arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stdout.read().decode()[-2000:]
        time.sleep(0.05)


def test_all_processes_stop_at_the_loss_of_one(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc_per_node", "2")
    done = start(*launcher, tmp_path / "run", nan_in_process=1)
    assert done.wait(timeout=300) == 0, done.stdout.read().decode()[-2000:]
    said = [(tmp_path / f"run-{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1] and "The loss of step 1 is not finite (process 1, batch [1] of 1, in rows" in said[0]
    assert saved(tmp_path / "run") == []


def test_a_folder_is_of_one_run(make_trainer, tmp_path):
    first = start(tmp_path / "run", wait_for=str(tmp_path / "go"))
    wait_for(tmp_path / "run-started", first)
    with pytest.raises(
        ValueError, match=f"Another run is writing to {tmp_path}/run. Wait for it, or choose another f"
    ):
        make_trainer().train()
    with pytest.raises(ValueError, match="Another run is writing"), sole_run(tmp_path / "run"):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    # Nothing of the killed run is left in the way, nor is anything of a run that failed or ended.
    with pytest.raises(RuntimeError), sole_run(tmp_path / "run"), sole_run(tmp_path / "run"):
        raise RuntimeError
    make_trainer().train()
    make_trainer(max_steps=3).train(resume_from_checkpoint=True)
    assert "checkpoint-3" in saved(tmp_path / "run")


@pytest.mark.parametrize(
    "arguments",
    [{}, {"max_steps": 3, "per_device_train_batch_size": 2}, {"max_steps": -1, "num_train_epochs": 0.5}],
    ids=str,
)
def test_a_finished_run_is_not_trained_on(make_trainer, tmp_path, caplog, arguments):
    """Its last step is amid an epoch, where transformers makes one more."""
    trainer = make_trainer(lr_scheduler_type="constant", **arguments)
    trainer.train()
    last, expected = trainer.state.global_step, trainer.model.state_dict()
    before = saved(tmp_path / "run")
    again = make_trainer(lr_scheduler_type="constant", **arguments)
    output = again.train(resume_from_checkpoint=True)
    assert (again.state.global_step, output.global_step) == (last, last) and saved(tmp_path / "run") == before
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())
    said = [record.getMessage() for record in caplog.records]
    assert any(f"checkpoint-{last} is the end of its run, of {last} steps: nothing is trained" in one for one in said)
    # Fewer steps than there were are over too; more of them go on.
    fewer = make_trainer(lr_scheduler_type="constant", **(arguments | {"max_steps": last - 1}))
    fewer.train(resume_from_checkpoint=True)
    assert fewer.state.global_step == last
    more = make_trainer(lr_scheduler_type="constant", **(arguments | {"max_steps": last + 1}))
    more.train(resume_from_checkpoint=True)
    assert more.state.global_step == last + 1


def test_a_run_that_stopped_early_is_not_trained_on(make_trainer, rows):
    def make(patience):
        return make_trainer(max_steps=9, eval_rows=rows, eval_strategy="steps", eval_steps=1,
                            early_stopping_patience=patience, early_stopping_threshold=1e3,
                            metric_for_best_model="loss", load_best_model_at_end=True)  # fmt: skip

    first = make(2)
    first.train()
    last = first.state.global_step
    assert last < 9
    again = make(2)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == last
    patient = make(4)
    patient.train(resume_from_checkpoint=True)
    assert last < patient.state.global_step < 9
