"""docs/targets.md is what its command prints; a few targets are tried at once, all of them where minutes are given."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
SCRIPT = ROOT / "benchmarks" / "list_targets.py"
sys.path.append(str(SCRIPT.parent))
KEYS_AND_VALUES = "no: its cache holds more than keys and values"
NOT_BATCHED = "no: transformers does not batch its layers"


@pytest.fixture(scope="module")
def names():
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(("model_type", "rows", "static", "batching"), [
    ("llama", "ragged", "yes", "yes"),
    ("bamba", "in step", KEYS_AND_VALUES, NOT_BATCHED),
    ("deepseek_v4", "in step, prompts of one length", KEYS_AND_VALUES, NOT_BATCHED),
    ("mamba", "refused", "", ""),
])  # fmt: skip
def test_ways_that_rows_grow(names, model_type, rows, static, batching):
    found = names["try_target"](model_type)
    assert (found.rows, found.static, found.batching) == (rows, static, batching)
    assert bool(found.why) == (rows == "refused")
    assert names["table"]([found]).splitlines()[-1] in PAGE


def test_drafts_are_often_right_and_what_differs_is_told(names, monkeypatch):
    model = names["tiny_model"]("llama")
    ids = names["prompts"](model, uneven=True)
    expected = names["generate"](model, ids)
    drafter = names["knowing_drafter"](model, expected[:, ids.shape[1] - 1 :])
    assert names["try_static"](model, drafter, ids, expected) == "yes"
    assert 0 < sum(drafter.last_stats.accepted_lens) < drafter.last_stats.verified_tokens
    assert names["try_batching"](model, drafter) == "yes"
    assert 0 < drafter.last_stats.accepted_tokens < drafter.last_stats.verified_tokens
    # As a target that says something else would be.
    assert names["try_static"](model, drafter, ids, expected + 1) == "WRONG: other tokens than plain generate()"
    monkeypatch.setitem(names["try_batching"].__globals__, "_batched", lambda *args, **options: [[1], [2], [3]])
    told = "WRONG: other tokens than plain generate(), as transformers' own"
    assert names["try_batching"](model, drafter) == told


def test_the_page_has_every_causal_model_type(names):
    listed = re.findall(r"^\| `(\S+)` \|", PAGE, flags=re.M)
    assert listed == sorted(names["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"])
    assert "WRONG" not in PAGE


def test_a_column_more_is_a_line(names, monkeypatch):
    found = names["Found"]("llama", "ragged", static="yes", batching="yes")
    monkeypatch.setitem(names["table"].__globals__, "COLUMNS", [*names["COLUMNS"], ("size", lambda found: "tiny")])
    assert names["table"]([found]).splitlines()[-1] == "| `llama` | ragged | yes | yes |  | tiny |"


@pytest.mark.slow
def test_the_page_is_what_the_command_prints(names):
    found = [names["try_target"](name) for name in sorted(names["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"])]
    assert names["table"](found) in PAGE
