"""`dspark bench` that is stopped keeps what it has measured, and goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dspark_hf.evaluation import exactness_suite, run_benchmark
from dspark_hf.modeling import DSparkModel

NUM_PROMPTS = 40

# A command that stands still once two calls are kept, so that it is stopped there however busy the machine is.
# A shell's jobs in the background are born deaf to SIGINT.
STANDING_STILL = """
import signal
import time
from dspark_hf.cli.main import app
from dspark_hf.evaluation.journal import Journal

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
    options = ["--data", data, "--tau-only", "--max-new-tokens", "8", "--temperature", "1"]
    return ["bench", "generate", *models, *options, "--json", tmp_path / "result.json"]


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
def test_a_stopped_benchmark_goes_on(dspark, command, tmp_path, with_signal):
    parts = tmp_path / "result.json.unfinished.jsonl"
    code, out = stopped(command, parts, with_signal)
    assert code == (130 if with_signal == signal.SIGINT else -with_signal)
    num_done = parts.read_bytes().count(b"\n") - 1
    assert num_done == 2 and not (tmp_path / "result.json").exists()
    assert ("tau (tokens per round)" in out) == (with_signal == signal.SIGINT)
    refused = dspark(*command)
    assert refused.code == 2 and "is what a stopped run left. Go on with --resume" in refused.err
    resumed = dspark(*command, "--resume")
    assert resumed.code == 0, resumed.err
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["num_resumed"] == num_done and result["num_prompts"] == NUM_PROMPTS
    assert not parts.exists()
    again = dspark(*command, "--resume")
    assert again.code == 2 and "is finished" in again.err
    whole = dspark(*command[:-1], tmp_path / "whole.json")
    assert whole.code == 0
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert whole["num_resumed"] == 0
    assert [call["tau"] for call in result["calls"]] == [call["tau"] for call in whole["calls"]]
    assert result["accepted_per_slot"] == whole["accepted_per_slot"]


@pytest.fixture
def interrupted(dspark, command, monkeypatch):
    """A run that ends after two calls, in this process."""

    def interrupting(target, drafter, tokenizer, prompts, settings, report, **options):
        def stop(num_done, comparisons):
            report(num_done, comparisons)
            if num_done == 2:
                raise KeyboardInterrupt

        return run_benchmark(target, drafter, tokenizer, prompts, settings, stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr("dspark_hf.evaluation.run_benchmark", interrupting)
        return dspark(*command)


def test_an_interrupt_shows_what_is_measured(interrupted):
    assert interrupted.code == 130
    assert "2 prompts, bfloat16" in interrupted.out and "tau (tokens per round)" in interrupted.out


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--temperature", "0.5"], "settings.temperature: 1.0 before, 0.5 now"),
        (["--limit", "9"], "prompts: "),
        (["--dtype", "float32"], "dtype: 'bfloat16' before, 'float32' now"),
    ],
    ids=str,
)
def test_other_settings_are_refused(dspark, command, interrupted, options, difference):
    outcome = dspark(*command, "--resume", *options)
    assert outcome.code == 2 and difference in outcome.err and "which is made otherwise" in outcome.err


def test_another_drafter_is_refused(dspark, command, interrupted, tmp_path):
    drafter = DSparkModel.from_pretrained(command[command.index("--drafter") + 1])
    drafter.layers[0].mlp.down_proj.weight.data *= 2
    drafter.save_pretrained(tmp_path / "other")
    outcome = dspark(*command, "--resume", "--drafter", tmp_path / "other")
    assert outcome.code == 2 and "(drafter: " in outcome.err


def test_resume_needs_a_file(dspark, data):
    outcome = dspark("bench", "generate", "--data", data, "--resume")
    assert outcome.code == 2 and "--resume goes on with the file of --json" in outcome.err


def test_stopped_exactness_goes_on(dspark, tmp_path, monkeypatch):
    def run(name, *options):
        sizes = ["--num-prompts", "8", "--num-samples", "480"]
        return dspark("bench", "exactness", *sizes, "--json", tmp_path / name, *options)

    monkeypatch.setattr(exactness_suite, "SAMPLING_OPTIONS", {"plain": {}})
    check = exactness_suite._check_pair

    def stop_at_qwen2(family, *rest):
        if family == "qwen2":
            raise KeyboardInterrupt
        return check(family, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(exactness_suite, "_check_pair", stop_at_qwen2)
        assert run("part.json").code == 130
    parts = (tmp_path / "part.json.unfinished.jsonl").read_text().splitlines()
    assert [json.loads(line)["part"] for line in parts[1:]] == ["greedy llama 0", "greedy qwen3 0"]
    assert run("part.json", "--resume", "--seed", "1").code == 2
    assert run("part.json", "--resume").code == run("whole.json").code == 0
    part, whole = (json.loads((tmp_path / name).read_text()) for name in ("part.json", "whole.json"))
    part.pop("provenance"), whole.pop("provenance")
    assert part == whole
