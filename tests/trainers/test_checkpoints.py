"""Resuming: only from checkpoints that were written whole, and bit for bit after a kill."""

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
from safetensors.torch import load_file

from dspark_hf.trainers.checkpoints import check_checkpoint, last_checkpoint

SCRIPT = Path(__file__).with_name("train_tiny.py")


@pytest.fixture
def folder(make_trainer, rows, tmp_path):
    """A run's folder with one real checkpoint, and a later copy of it."""
    make_trainer(tmp_path, rows, max_steps=1, save_strategy="steps", save_steps=1).train()
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "checkpoint-2")
    path = tmp_path / "checkpoint-2" / "trainer_state.json"
    path.write_text(path.read_text().replace('"global_step": 1', '"global_step": 2'))
    (tmp_path / "checkpoint-last").mkdir()
    return tmp_path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


DAMAGES = {
    "no readable trainer_state.json": lambda path: cut(path / "trainer_state.json"),
    "model.safetensors cannot be read": lambda path: cut(path / "model.safetensors"),
    "optimizer.pt is cut off": lambda path: cut(path / "optimizer.pt"),
    "rng_state.pth is cut off": lambda path: cut(path / "rng_state.pth"),
    "no optimizer.pt beside scheduler.pt": lambda path: (path / "optimizer.pt").unlink(),
    "no scheduler.pt beside the optimizer's state": lambda path: (path / "scheduler.pt").unlink(),
}


def test_damaged_checkpoints_are_passed_over_and_named(folder):
    assert last_checkpoint(folder) == str(folder / "checkpoint-2")
    shutil.copytree(folder / "checkpoint-2", folder / "whole")
    for message, damage in DAMAGES.items():
        shutil.rmtree(folder / "checkpoint-2")
        shutil.copytree(folder / "whole", folder / "checkpoint-2")
        damage(folder / "checkpoint-2")
        with pytest.raises(ValueError, match=message):
            check_checkpoint(folder / "checkpoint-2")
        assert last_checkpoint(folder) == str(folder / "checkpoint-1")


def test_resuming_needs_a_whole_checkpoint(make_trainer, rows, folder):
    (folder / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="was not written whole"):
        make_trainer(folder, rows).train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    shutil.rmtree(folder / "checkpoint-1")
    with pytest.raises(ValueError, match="no whole checkpoint in"):
        make_trainer(folder, rows).train(resume_from_checkpoint=True)


def start(folder: Path, **arguments) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    run = {"max_steps": 30, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 5}
    assert start(tmp_path / "whole", **run).wait() == 0
    killed = start(tmp_path / "part", **run)
    deadline = time.monotonic() + 600
    # As soon as a third checkpoint's folder appears: it is being written.
    while not (tmp_path / "part" / "checkpoint-6").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "part" / "result.safetensors").exists()
    assert start(tmp_path / "part", resume_from_checkpoint="True", **run).wait() == 0
    whole, part = (load_file(tmp_path / name / "result.safetensors") for name in ("whole", "part"))
    assert whole.keys() == part.keys()
    for name, tensor in whole.items():
        assert torch.equal(part[name], tensor), name
