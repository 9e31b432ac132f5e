"""Two processes with half the batch each are one process with all of it: loss, figures, weights, held-out tau."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("train_tiny.py")


def run(folder, *launcher, **arguments):
    folder.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "result.safetensors")


def assert_same(one, two):
    assert one["loss"][0] != one["loss"][-1]
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, rtol=1e-3, atol=1e-4), name


def test_two_processes_equal_one(tmp_path):
    one = run(tmp_path / "one", per_device_train_batch_size=4)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    two = run(tmp_path / "two", *launcher, per_device_train_batch_size=2)
    assert_same(one, two)
