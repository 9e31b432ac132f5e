"""Two processes with half the batch each are one process with all of it: loss, figures, weights, held-out tau."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "examples" / "accelerate"
SCRIPT = Path(__file__).with_name("train_tiny.py")


def run(folder, *launcher, **arguments):
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "find_unused_parameters" not in done.stderr
    return load_file(folder / "result.safetensors")


def run_here(folder, **arguments):
    """In this process, which has imported all of it."""
    folder.mkdir()
    runpy.run_path(str(SCRIPT))["main"](str(folder), arguments)
    return load_file(folder / "result.safetensors")


def assert_same(one, two):
    assert one["loss"][0] != one["loss"][-1]
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, rtol=1e-3, atol=1e-4), name


def test_two_processes_equal_one(tmp_path):
    one = run_here(tmp_path / "one", per_device_train_batch_size=2, max_steps=8)
    # A free port.
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu.yaml"))
    launcher = (*launcher, "--main_process_port", "0")
    two = run(tmp_path / "two", *launcher, per_device_train_batch_size=1, max_steps=8)
    assert_same(one, two)


@pytest.mark.slow
def test_two_processes_share_a_stream(tmp_path):
    # Six steps of four rows are more than one pass over sixteen.
    arguments = {"streaming": True, "max_steps": 6}
    one = run_here(tmp_path / "one", per_device_train_batch_size=4, **arguments)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    two = run(tmp_path / "two", *launcher, per_device_train_batch_size=2, **arguments)
    assert_same(one, two)


@pytest.mark.slow
def test_fsdp2_equals_one_process_and_resumes(tmp_path):
    one = run_here(tmp_path / "one", per_device_train_batch_size=4)
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "fsdp2.yaml"))
    launcher = (*launcher, "--num_processes", "2", "--mixed_precision", "no")
    arguments = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2}
    sharded = run(tmp_path / "two", *launcher, **arguments)
    assert_same(one, sharded)
    # What it saves is an ordinary drafter.
    saved = load_file(tmp_path / "two" / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in saved.items())
    shutil.rmtree(tmp_path / "two" / "checkpoint-4")
    resumed = run(tmp_path / "two", *launcher, **arguments, resume_from_checkpoint="True")
    for name, tensor in sharded.items():
        assert torch.equal(resumed[name], tensor), name


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_what_accelerate_reads(path):
    # Reading it refuses unknown keys of the first level; those inside are options of the launcher.
    config = load_config_from_file(str(path))
    options = set(vars(launch_command_parser().parse_args([path.name])))
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    inside = {key for section in given.values() if isinstance(section, dict) for key in section}
    assert inside - options == set()
    expected = (2, "no") if path.stem == "cpu" else (8, "bf16")
    assert (config.num_processes, config.mixed_precision) == expected
    assert f"--config_file examples/accelerate/{path.name}" in path.read_text(encoding="utf-8")
