"""`dspark bench generate`: what is lost between the passes, and its refusals."""

import json

import pytest

from dspark_hf.ops.dispatch import KERNELS
from dspark_hf.ops.timing import Measured

LINES = [
    {"turns": ["Name three colours.", "Now four."]},
    {"messages": [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello."}]},
    {"turns": ["Count."]},
]


@pytest.fixture
def data(tmp_path) -> str:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return str(path)


def test_passes_are_timed_beside_the_runs(dspark, models, data, tmp_path):
    out = tmp_path / "out" / "result.json"
    outcome = dspark("bench", "generate", *models, "--data", data, "--max-new-tokens", "12", "--dtype", "float32",
                     "--json", out)  # fmt: skip
    assert outcome.code == 0, outcome.err
    result = json.loads(out.read_text())
    rows = {row["way"]: row for row in result["rows"]}
    assert set(rows) == {"drafter, alone", "plain", "plain, bfloat16"}
    drafted = rows["drafter, alone"]
    assert drafted["identical"] == {"num_identical": 4, "num_answers": 4, "differences": []}
    assert len(drafted["efficiency"]["calls"]) == 4 and drafted["efficiency"]["plain_step_seconds"] > 0
    assert sum(drafted["time_share"].values()) == pytest.approx(1.0)
    assert rows["plain, bfloat16"]["ratio"]["num_calls"] == 4 and rows["plain, bfloat16"]["identical"] is None
    assert result["provenance"]["machine"]["device"] == "cpu"
    assert "efficiency" in outcome.out and "4 of 4" in outcome.out


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "nothing.jsonl"), ("{broken\n", "line 1"), ("\n", "no conversations"), ('{"text": "a"}\n', "line 1")],
)
def test_bad_data_is_one_line_and_code_2(dspark, models, tmp_path, text, message):
    path = tmp_path / "nothing.jsonl"
    if text is not None:
        path.write_text(text)
    outcome = dspark("bench", "generate", *models, "--data", path)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert message in outcome.err


def test_unwritable_output_is_refused_before_the_work(dspark, data, tmp_path):
    folder = dspark("bench", "generate", "--data", data, "--json", tmp_path, "--target", "/no/such")
    assert folder.code == 2
    assert "is a folder. Add a file name." in folder.err
    under_a_file = dspark("bench", "generate", "--data", data, "--json", f"{data}/result.json", "--target", "/no/such")
    assert under_a_file.code == 2
    assert "--json cannot be written" in under_a_file.err


def test_kernels_are_compared_before_they_are_timed(dspark, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    outcome = dspark("bench", "kernels", "--device", "cpu", "--kernel", "verify", "--json", tmp_path / "kernels.json")
    assert outcome.code == 0 and "nothing is timed: the interpreter" in outcome.out and "NO:" not in outcome.out
    rows = json.loads((tmp_path / "kernels.json").read_text())["kernels"]
    assert {row["case"] for row in rows} >= {"small", "greedy"} and all(row["seconds"] == {} for row in rows)
    monkeypatch.setattr("dspark_hf.ops.verify.cases.reference.judge", lambda *given: (given[0][:, 0] + 1, None))
    outcome = dspark("bench", "kernels", "--device", "cpu", "--kernel", "verify")
    assert outcome.code == 1 and "NO: accepted_len is" in outcome.out


def test_names_of_kernels_are_whole_on_a_narrow_terminal(dspark, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("dspark_hf.ops.timing.measure", lambda spec, case, device: Measured(None, {}, 1))
    outcome = dspark("bench", "kernels", "--device", "cpu")
    assert all(f"│ {name} " in outcome.out for name in KERNELS)


def test_without_a_gpu_it_says_why_no_kernel_is_timed(dspark, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    outcome = dspark("bench", "kernels", "--device", "cpu")
    assert outcome.code == 0 and "nothing is timed: tensors are on cpu, not on a CUDA device" in outcome.out
    # Nor does the interpreter run without it.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("dspark_hf.ops.dispatch.has_triton", lambda: False)
    outcome = dspark("bench", "kernels", "--device", "cpu")
    assert outcome.code == 0 and outcome.out == (
        "nothing is compared: Triton is not installed (pip install triton, on Linux)"
    )
    outcome = dspark("bench", "kernels", "--kernel", "fast")
    assert outcome.code == 2 and "--kernel must be one of" in outcome.err and "got 'fast'" in outcome.err
