"""The programs that make the shipped drafter better: one on a CPU, killed at any step, and one for a GPU."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dspark_hf import AutoDrafter, DSparkModel

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "examples" / "train_embedded.sh"
GPU_PROGRAM = ROOT / "benchmarks" / "train_embedded_gpu.py"
# Every token is a word, so that whatever a random target writes is text.
WORDS = ["<pad>", "<eos>", "<mask>", "user:", "assistant:", *(f"word{i}" for i in range(90))]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }} <eos>"
    "{% endgeneration %}{% else %}{{ m['content'] }} <eos>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a random target, and of a random drafter with a reduced vocabulary for it."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models")
    LlamaForCausalLM(config).save_pretrained(folder / "target")
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "target")
    target = LlamaForCausalLM.from_pretrained(folder / "target")
    drafter = DSparkModel.from_target(
        target, target_layer_ids=[0, 2], mask_token_id=2, markov_rank=4, block_size=3, draft_vocab_size=64
    )
    drafter.choose_vocabulary(torch.arange(5, 69))
    drafter.save_pretrained(folder / "drafter")
    return folder


def start(folders, work, *options):
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "src")}
    environment |= {"XDG_CACHE_HOME": str(work.parent)}
    command = [
        PROGRAM, "--work", work, "--target", folders / "target", "--drafter", folders / "drafter", "--size", 6,
        "--batch", 6, "--rounds", 1, "--pieces", 1, "--train", "compile_loss=false",
        "--nice", 0, *options,
    ]  # fmt: skip
    with open(work.parent / "out", "a") as out:
        return subprocess.Popen(list(map(str, command)), env=environment, stdout=out, stderr=subprocess.STDOUT)


def measured(work, name):
    (row,) = json.loads((work / "eval" / name / "summary.json").read_text())["rows"]
    return row


def test_folders_are_meant_where_it_is_started(tmp_path):
    core = str(min(os.sched_getaffinity(0)))
    # It makes its folders, and then asks a Python that fails.
    environment = os.environ | {"PYTHON": "/bin/false"}
    done = subprocess.run([PROGRAM, "--work", "work", "--core", core], cwd=tmp_path, env=environment)
    assert done.returncode != 0 and (tmp_path / "work" / "eval").is_dir()


@pytest.mark.slow
def test_a_killed_program_goes_on(folders, tmp_path):
    work, output = tmp_path / "work", tmp_path / "out"
    process = start(folders, work)
    while not (work / ".done-piece-0001-greedy").exists():
        assert process.poll() is None, output.read_text()
        time.sleep(0.2)
    os.killpg(int((work / "pgid").read_text()), signal.SIGKILL)
    process.wait()
    written = (work / "text" / "0001-greedy.jsonl").read_bytes()

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"turns": ["word1 word2"]}))
    assert start(folders, work, "--eval", prompts).wait() == 0, output.read_text()
    assert (work / "text" / "0001-greedy.jsonl").read_bytes() == written
    assert len(written.splitlines()) == 6 and (work / "text" / "0001-sampled.jsonl").exists()
    best = os.readlink(work / "best")
    AutoDrafter.from_pretrained(work / "best")
    taus = {name: measured(work, f"held_out-{name}-T0")["tau"] for name in ("first", "round-1", "round-1-mean")}
    assert taus[best] == max(taus.values())
    assert measured(work, f"prompts-{best}-T1")["temperature"] == 1


@pytest.mark.slow
def test_the_program_for_a_gpu_brings_a_drafter_back(folders, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("train_embedded_gpu", GPU_PROGRAM)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.setattr(program, "TIMED_STEPS", 2)
    monkeypatch.setattr(program, "PIECES", ("chats", program.TASKS))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"turns": ["word1 word2"]}))
    words = ["--target", folders / "target", "--drafter", folders / "drafter", "--out", tmp_path / "out"]
    words += ["--evaluate", prompts, "--num_tokens", 100, "--batch_size", 4, "--max_new_tokens", 12]
    words += ["--max_steps", 3, "--train_batch_size", 2, "--num_prompts", 4]
    figures = program.main(program.arguments(list(map(str, words))))
    assert figures["answer_tokens"] >= 100 and figures["steps"] == 3
    assert json.loads((tmp_path / "out" / "figures.json").read_text()) == figures
    assert set(figures["after"]) == {"held_out", "prompts"} and set(figures["before"]["prompts"]) == {"T=0", "T=1"}
    before, after = (AutoDrafter.from_pretrained(path) for path in (folders / "drafter", tmp_path / "out" / "drafter"))
    assert not torch.equal(before.layers[0].mlp.up_proj.weight.bfloat16(), after.layers[0].mlp.up_proj.weight)
    # Without time left a piece is still written and a step made.
    words += ["--minutes", 0, "--num_tokens", 10**9, "--out", tmp_path / "late"]
    assert program.main(program.arguments(list(map(str, words))))["steps"] == 1
