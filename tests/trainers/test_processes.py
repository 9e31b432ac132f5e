"""Two processes with half the batch each are one process with all of it: loss, figures and weights."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("train_tiny.py")


def run(folder, *launcher, batch_size):
    folder.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), str(batch_size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(folder / "result.safetensors")


def test_two_processes_equal_one(tmp_path):
    one = run(tmp_path / "one", batch_size=4)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    two = run(tmp_path / "two", *launcher, batch_size=2)
    assert one["losses"][0] != one["losses"][-1]
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, rtol=1e-3, atol=1e-5), name
