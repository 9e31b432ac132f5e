"""The script that measures what training costs: it runs, and compares like with like."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "measure_training.py"
DRAFTER = {"num_hidden_layers": 1, "block_size": 4, "markov_rank": 8, "target_layer_ids": [0, 2]}

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not tell the peak of a process's memory"
)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("measure_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def figures_of(script, target, monkeypatch):
    """`figures_of(part)`: what it measures on the tiny target."""
    monkeypatch.setitem(script.DRAFTERS, "tiny", DRAFTER)

    def run(part):
        args = script.Arguments(
            part, target="tiny", num_rows=4, min_length=12, max_length=20, num_anchors=4, num_steps=1,
            contexts=[16, 32], dtypes=["bf16", "int4"], num_tokens=200, draft_vocab_size=60, compile_loss=False,
        )  # fmt: skip
        with torch.random.fork_rng():
            return script.PARTS[part](args, target)

    return run


def test_the_loss_written_out_is_that_of_the_trainer(figures_of):
    figures = figures_of("step")
    assert figures["written out"]["first_loss"] == pytest.approx(figures["ours"]["first_loss"], rel=1e-2)
    assert figures["ours"]["seconds"] > 0 and figures["ours"]["peak_mib"] >= 0


def test_cached_and_online_train_on_the_same(figures_of):
    figures = figures_of("states")
    assert set(figures) == {"online", "bf16", "int4"} and figures["online"]["ratio"] == 1
    assert all(figures[dtype]["first_loss"] == pytest.approx(figures["online"]["first_loss"], rel=0.05)
               for dtype in ("bf16", "int4"))  # fmt: skip


def test_parts_of_a_step_are_measured(figures_of):
    for figure in figures_of("context").values():
        # No more than that: on a shared machine a single measurement may be any number of times too long.
        assert figure["step_seconds"] > 0 and figure["projection_share"] > 0


def test_a_build_takes_longer_than_the_target_alone(figures_of):
    figures = figures_of("cache")
    assert figures["num_tokens"] > 150
    assert figures["bf16"]["statistics_share"] == 0 < figures["int4"]["statistics_share"] < 1
    assert figures["int4"]["rest_per_forward"] > 0
