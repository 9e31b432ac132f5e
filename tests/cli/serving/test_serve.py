"""`dspark serve`: what it starts, and what it prints for other engines."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark_hf import AutoDrafter, DSparkForCausalLM


@pytest.fixture(scope="module")
def composite_dir(tmp_path_factory, tiny_target_dir, tiny_drafter_dir):
    """A folder with both models."""
    folder = tmp_path_factory.mktemp("composite") / "Tiny-DSpark"
    target, drafter = (
        AutoModelForCausalLM.from_pretrained(tiny_target_dir),
        AutoDrafter.from_pretrained(tiny_drafter_dir),
    )
    both = DSparkForCausalLM.from_parts(target, drafter)
    both.save_pretrained(folder, tokenizer=AutoTokenizer.from_pretrained(tiny_target_dir))
    return str(folder)


@pytest.fixture
def started(monkeypatch):
    """What would serve, in place of serving."""
    from dspark_hf.serving.server.app import Serving

    found = []
    monkeypatch.setattr(Serving, "run", lambda serving, host, port: found.append((serving, host, port)))
    yield found
    for serving, *_ in found:
        serving.close()


def test_target_and_drafter_by_name(dspark, started, tiny_target_dir, tiny_drafter_dir):
    outcome = dspark("serve", tiny_target_dir, "--drafter", tiny_drafter_dir, "--port", "8001", "--dtype", "bf16")
    assert outcome.code == 0, outcome.err
    serving, host, port = started[0]
    assert (host, port) == (
        "localhost",
        8001,
    ) and f"ready: http://localhost:8001/v1 serves '{tiny_target_dir}'" in outcome.err
    model = serving.models.model
    assert model.drafter.is_bound_to(model) and model.dtype == model.drafter.dtype == torch.bfloat16
    assert not serving.state.is_batching


def test_a_composite_folder_by_name(dspark, started, composite_dir):
    outcome = dspark("serve", composite_dir, "--cb", "--cb-num-blocks", "8", "--cb-page-size", "16")
    assert outcome.code == 0, outcome.err
    serving = started[0][0]
    assert serving.models.model.drafter.is_drafter and serving.state.is_batching
    assert [one["id"] for one in serving.models.list_models()] == [composite_dir]


@pytest.mark.parametrize("is_batched", [False, True])
def test_a_drafter_that_does_not_load(dspark, started, tmp_path, tiny_target_dir, tiny_drafter_dir, is_batched):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in Path(tiny_drafter_dir).iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("fc.weight")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    outcome = dspark("serve", tiny_target_dir, "--drafter", broken, *["--cb"] * is_batched)
    assert outcome.code == 2 and "fc.weight" in outcome.err and "Traceback" not in outcome.err and not started


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/target"], "There is no folder /nowhere/target"),
        (["TARGET", "--drafter", "/nowhere/drafter"], "There is no folder /nowhere/drafter"),
        (["TARGET"], "error:"),
        (["TARGET", "--drafter", "DRAFTER", "--cb-num-blocks", "8"], "The options --cb-... are for --cb"),
        (["TARGET", "--drafter", "DRAFTER", "--dtype", "int8"], "--dtype must be one of"),
        (["TARGET", "--drafter", "DRAFTER", "--device", "tpu:x"], "--device must be"),
        (["TARGET", "--drafter", "TARGET"], "error:"),
    ],
)
def test_bad_options(dspark, started, tiny_target_dir, tiny_drafter_dir, arguments, message):
    names = {"TARGET": tiny_target_dir, "DRAFTER": tiny_drafter_dir}
    outcome = dspark("serve", *[names.get(argument, argument) for argument in arguments])
    assert outcome.code == 2 and message in outcome.err and "Traceback" not in outcome.err and not started


def test_a_model_whose_options_do_not_go_with_batching(dspark, started, tmp_path, tiny_target_dir, tiny_drafter_dir):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    target.generation_config.repetition_penalty = 1.05
    target.save_pretrained(tmp_path / "target")
    AutoTokenizer.from_pretrained(tiny_target_dir).save_pretrained(tmp_path / "target")
    outcome = dspark("serve", tmp_path / "target", "--drafter", tiny_drafter_dir, "--cb")
    assert outcome.code == 2 and "repetition_penalty=1.05 is not supported in continuous batching" in outcome.err


@pytest.fixture(scope="module")
def qwen3_drafter_dir(tmp_path_factory):
    """A drafter that engines load."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from dspark_hf import DSparkModel

    config = Qwen3Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, head_dim=8,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    folder = tmp_path_factory.mktemp("qwen3") / "drafter"
    target = Qwen3ForCausalLM(config)
    DSparkModel.from_target(
        target, target_layer_ids=[0, 2], mask_token_id=3, markov_rank=4, block_size=4
    ).save_pretrained(folder)
    return str(folder)


def test_commands_of_other_engines(dspark, qwen3_drafter_dir):
    outcome = dspark("serve", "org/Model", "--drafter", qwen3_drafter_dir, "--vllm", "--sglang")
    assert outcome.code == 0, outcome.err
    vllm, sglang = outcome.out.split(" python -m ")
    assert vllm.startswith("vllm serve org/Model --speculative-config '")
    config = json.loads(vllm.split("'")[1])
    assert (
        config["model"] == qwen3_drafter_dir and config["method"] == "dspark" and config["num_speculative_tokens"] == 4
    )
    assert sglang.endswith(f"--speculative-algorithm DSPARK --speculative-draft-model-path {qwen3_drafter_dir}")


def test_engines_that_do_not_load_the_drafter(dspark, tiny_drafter_dir):
    outcome = dspark("serve", "org/Model", "--drafter", tiny_drafter_dir, "--vllm")
    assert outcome.code == 2 and "vLLM will not serve this drafter: it has no" in outcome.err


@pytest.mark.slow
def test_the_command_serves_and_ends(tiny_target_dir, tiny_drafter_dir):
    command = [sys.executable, "-m", "dspark_hf", "serve", tiny_target_dir, "--drafter", tiny_drafter_dir, "--host",
               "127.0.0.1", "--port", "18431", "--cb", "--cb-num-blocks", "32", "--cb-page-size", "16"]  # fmt: skip
    for number in (signal.SIGKILL, signal.SIGINT):
        # After a process that was killed, another takes its place.
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    assert httpx.get("http://127.0.0.1:18431/health", timeout=5).status_code == 200
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline and process.poll() is None
                    time.sleep(0.3)
            body = {"model": tiny_target_dir, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
            answer = httpx.post("http://127.0.0.1:18431/v1/chat/completions", json=body, timeout=60)
            assert answer.status_code == 200
            process.send_signal(number)
            process.wait(timeout=30)
        finally:
            process.kill()
