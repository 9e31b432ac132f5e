"""docs/targets.md is what its command prints; a few targets are tried at once, all of them where minutes are given."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
SCRIPT = ROOT / "benchmarks" / "list_targets.py"


@pytest.fixture(scope="module")
def names():
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(("model_type", "rows"), [
    ("llama", "ragged"), ("bamba", "in step"), ("deepseek_v4", "in step, prompts of one length"), ("mamba", "refused"),
])  # fmt: skip
def test_ways_that_rows_grow(names, model_type, rows):
    found = names["try_target"](model_type)
    assert found.rows == rows and bool(found.why) == (rows == "refused")
    assert names["table"]([found]).splitlines()[-1] in PAGE


def test_the_page_has_every_causal_model_type(names):
    listed = re.findall(r"^\| `(\S+)` \|", PAGE, flags=re.M)
    assert listed == sorted(names["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"])
    assert "WRONG" not in PAGE


def test_a_column_more_is_a_line(names, monkeypatch):
    found = names["Found"]("llama", "ragged")
    monkeypatch.setitem(names["table"].__globals__, "COLUMNS", [*names["COLUMNS"], ("size", lambda found: "tiny")])
    assert names["table"]([found]).splitlines()[-1] == "| `llama` | ragged |  | tiny |"


@pytest.mark.slow
def test_the_page_is_what_the_command_prints(names):
    found = [names["try_target"](name) for name in sorted(names["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"])]
    assert names["table"](found) in PAGE
