"""`dspark evaluate` and `dspark bench` that are stopped keep what they have measured, and go on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dspark_hf.evaluation import evaluate
from dspark_hf.evaluation.exactness import suite
from dspark_hf.modeling import DSparkModel

NUM_PROMPTS = 12

# A command that stands still once two calls are kept, so that it is stopped there however busy the machine is.
# A shell's jobs in the background are born deaf to SIGINT.
STANDING_STILL = """
import signal
import time
from dspark_hf.cli.main import app
from dspark_hf.evaluation.running.journal import Journal

write = Journal._write

def write_and_wait(journal, record):
    write(journal, record)
    while journal.path.read_bytes().count(b"\\n") >= 3:
        time.sleep(1)

Journal._write = write_and_wait
signal.signal(signal.SIGINT, signal.default_int_handler)
app(prog_name="dspark")
"""


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"turns": [f"Count to {number}."]}) + "\n" for number in range(NUM_PROMPTS)))
    return path


@pytest.fixture
def command(models, data, tmp_path):
    options = ["--task", data, "--no-plain", "--speculation", "alone", "--max-new-tokens", "8", "--temperature", "1"]
    return ["evaluate", *models, *options, "--out", tmp_path / "run"]


def stopped(command, parts, with_signal):
    """Exit code and output of a real process that gets the signal as soon as some calls are done."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-c", STANDING_STILL, *map(str, command)], stdout=subprocess.PIPE, text=True, env=environment
    )
    while process.poll() is None and (not parts.exists() or parts.read_bytes().count(b"\n") < 3):
        time.sleep(0.005)
    process.send_signal(with_signal)
    out, _ = process.communicate()
    return process.returncode, out


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT], ids=lambda one: one.name)
def test_a_stopped_evaluation_goes_on(dspark, command, tmp_path, with_signal):
    out = tmp_path / "run"
    code, printed = stopped(command, out / "records-0.jsonl", with_signal)
    assert code == (130 if with_signal == signal.SIGINT else -with_signal)
    num_done = (out / "records-0.jsonl").read_bytes().count(b"\n") - 1
    assert num_done == 2 and not (out / "summary.json").exists()
    assert ("tau" in printed and "not whole" in " ".join(printed.split())) == (with_signal == signal.SIGINT)
    refused = dspark(*command)
    assert refused.code == 2 and "is what an earlier run left. Go on with --resume" in refused.err
    resumed = dspark(*command, "--resume")
    assert resumed.code == 0, resumed.err
    result = json.loads((out / "summary.json").read_text())
    assert result["rows"][0]["num_prompts"] == NUM_PROMPTS and result["num_missing"] == 0
    again = dspark(*command, "--resume")
    assert again.code == 2 and "holds a finished run" in again.err
    whole = dspark(*command[:-1], tmp_path / "whole")
    assert whole.code == 0
    (row,), (other,) = result["rows"], json.loads((tmp_path / "whole" / "summary.json").read_text())["rows"]
    assert (row["tau"], row["accepted_per_slot"]) == (other["tau"], other["accepted_per_slot"])


@pytest.fixture
def interrupted(dspark, command, monkeypatch):
    """A run that ends after two calls, in this process."""

    def interrupting(*arguments, report, **options):
        def stop(num_done, num_all, name):
            report(num_done, num_all, name)
            if num_done == 2:
                raise KeyboardInterrupt

        return evaluate(*arguments, report=stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr("dspark_hf.evaluation.evaluate", interrupting)
        return dspark(*command)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--temperature", "0.5"], "settings.temperatures: [1.0] before, [0.5] now"),
        (["--limit", "5"], "tasks.0.cut: "),
        (["--dtype", "float32"], "dtype: 'bfloat16' before, 'float32' now"),
    ],
    ids=str,
)
def test_other_settings_are_refused(dspark, command, interrupted, options, difference):
    if "--temperature" in options:
        command = [part for part in command if part not in ("--temperature", "1")]
    outcome = dspark(*command, "--resume", *options)
    assert outcome.code == 2 and difference in outcome.err and "which is made otherwise" in outcome.err


def test_another_drafter_is_refused(dspark, command, interrupted, tmp_path):
    drafter = DSparkModel.from_pretrained(command[command.index("--drafter") + 1])
    drafter.layers[0].mlp.down_proj.weight.data *= 2
    drafter.save_pretrained(tmp_path / "tiny-drafter")
    changed = [
        tmp_path / "tiny-drafter" if part == command[command.index("--drafter") + 1] else part for part in command
    ]
    outcome = dspark(*changed, "--resume")
    assert outcome.code == 2 and ".weights: " in outcome.err


def test_resume_needs_a_file(dspark):
    outcome = dspark("bench", "exactness", "--resume")
    assert outcome.code == 2 and "--resume goes on with the file of --json" in outcome.err


def test_stopped_exactness_goes_on(dspark, tmp_path, monkeypatch):
    def run(name, *options):
        sizes = ["--num-prompts", "3", "--num-samples", "240"]
        return dspark("bench", "exactness", *sizes, "--json", tmp_path / name, *options)

    monkeypatch.setattr(suite, "SAMPLING_OPTIONS", {"plain": {}})
    monkeypatch.setattr(suite, "FAMILIES", ("llama", "qwen3", "qwen2"))
    monkeypatch.setattr(suite, "_BATCH_SIZES", (1, 3))
    check = suite._check_pair

    def stop_at_qwen2(family, *rest):
        if family == "qwen2":
            raise KeyboardInterrupt
        return check(family, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(suite, "_check_pair", stop_at_qwen2)
        assert run("part.json").code == 130
    parts = (tmp_path / "part.json.unfinished.jsonl").read_text().splitlines()
    assert [json.loads(line)["part"] for line in parts[1:]] == ["greedy llama 0", "greedy qwen3 0"]
    assert run("part.json", "--resume", "--seed", "1").code == 2
    assert run("part.json", "--resume").code == run("whole.json").code == 0
    part, whole = (json.loads((tmp_path / name).read_text()) for name in ("part.json", "whole.json"))
    part.pop("provenance"), whole.pop("provenance")
    assert part == whole
