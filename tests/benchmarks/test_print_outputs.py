"""The script that shows that a change changed nothing: it repeats itself, and sees a change."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "print_outputs.py"


@pytest.fixture
def names():
    names = runpy.run_path(str(SCRIPT))
    names["hash_outputs"].__globals__.update(BATCH_SIZES=(1, 3), ANSWER_LEN=12)
    return names


def test_hashes_repeat_themselves_and_see_another_output(names):
    target = names["make_target"]("llama")
    drafters, again = names["make_drafters"](target), names["make_drafters"](target)
    assert set(drafters) == {"lookup", "dspark", "dflash", "eagle3"}
    hashes = []
    for name, drafter in drafters.items():
        options = names["options_of"](name)
        hashes.append(names["hash_outputs"](target, drafter, options))
        assert names["hash_outputs"](target, again[name], options) == hashes[-1]
    assert len(set(hashes)) == 4
    target.lm_head.weight.data[5] += 1
    options = names["options_of"]("dspark")
    assert names["hash_outputs"](target, drafters["dspark"], options) != hashes[list(drafters).index("dspark")]


def test_losses_repeat_themselves(names, capsys):
    losses = names["train_losses"](names["make_target"]("llama"))
    assert len(losses) == 3 and all(float.fromhex(loss) > 0 for loss in losses)
    assert names["train_losses"](names["make_target"]("llama")) == losses
