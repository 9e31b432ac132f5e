"""Processes that work together end in order, also after an error."""

import os
import subprocess
import sys

import pytest
import torch.distributed as dist
from typer.testing import CliRunner

from dspark_hf.cli.main import app
from dspark_hf.processes import end_in_order

# Two processes of one group; each leaves a hundred sums that nobody waits for, and ends at once.
SCRIPT = """
import os, sys, time
import torch, torch.distributed as dist
from dspark_hf.processes import end_in_order

rank, store, way = int(sys.argv[1]), sys.argv[2], sys.argv[3]
with end_in_order():
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
    for _ in range(100):
        dist.all_reduce(torch.ones(100), async_op=True)
    if way == "error":
        if rank == 1:
            raise ValueError("this one fails")
        while True:  # until the other has gone
            dist.all_reduce(torch.ones(1))
assert not dist.is_initialized()
"""


def run_two(tmp_path, way):
    """Exit codes and what was written to standard error, of each process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "store"), way],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=900)[1] for process in processes]
    return [process.returncode for process in processes], errors


def test_they_wait_for_each_other(tmp_path):
    codes, errors = run_two(tmp_path, "fine")
    assert codes == [0, 0], errors


def test_one_that_fails_keeps_nobody_waiting(tmp_path):
    codes, errors = run_two(tmp_path, "error")
    assert codes == [1, 1], errors
    assert "ValueError: this one fails" in errors[1] and "Connection" in errors[0]


def test_the_group_is_gone_after_an_error(tmp_path):
    with pytest.raises(KeyError), end_in_order():
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        raise KeyError
    assert not dist.is_initialized()


def test_without_a_group_nothing_happens():
    with end_in_order():
        pass


def test_no_torch_is_imported_for_it():
    lines = ["import sys", "from dspark_hf.processes import end_in_order", "with end_in_order(): pass"]
    code = "\n".join([*lines, "assert 'torch' not in sys.modules"])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(("arguments", "code"), [(["env"], 0), (["train", "target=none", "no_such_key=1"], 2)])
def test_every_command_ends_in_order(tmp_path, arguments, code):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    assert CliRunner().invoke(app, arguments).exit_code == code
    assert not dist.is_initialized()
