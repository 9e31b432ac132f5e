"""Scripts that people start from run, on a tiny pair; each says in its docstring how to start it."""

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from code_blocks import ROOT, check_command, commands
from transformers import AutoModelForCausalLM

from dspark_hf import AutoDrafter, DSparkModel
from dspark_hf.hub import embedded

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.name != "quickstart.py")
WORDS = ("tea", "sun", "moon", "bread", "rain", "chess")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, tiny_target_dir, tiny_drafter_dir):
    """Call `run(script, *arguments)` as the shell would, in a folder of its own; what it printed comes back."""
    monkeypatch.setattr(embedded, "resolve_target", lambda name: tiny_target_dir if name == "embedded" else name)
    monkeypatch.setattr(
        embedded, "resolve_drafter", lambda name: tiny_drafter_dir if str(name) == "embedded" else str(name)
    )
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"turns": [f"Say {word}"]}) + "\n" for word in WORDS))

    def run_script(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run_script


def test_generate(run):
    out = run("generate.py", "Say tea", "Say sun", "--dtype", "float32", "--max_new_tokens", 8)
    assert "> Say tea\n" in out and "> Say sun\n" in out and "tau" in out


def test_grammar_with_drafts_that_know_it_and_drafts_that_do_not(run):
    pytest.importorskip("xgrammar")
    out = run("grammar.py", "Say tea", "--dtype", "float32", "--max_new_tokens", 40)
    taus = re.findall(r"drafts (not masked|masked): tau (\d\.\d\d)", out)
    assert [name for name, _ in taus] == ["not masked", "masked"] and '{"name": "' in out
    # Both ways wrote the same.
    assert "\nnot masked: " not in out


def test_sampled_answers_depend_on_the_seed_alone(run):
    sampled = ("Say tea", "--dtype", "float32", "--max_new_tokens", 12, "--temperature", 1, "--seed")
    answers = [run("generate.py", *sampled, seed).split("> Say tea")[1] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_evaluate(run, tiny_drafter_dir):
    options = ("--dtype", "float32", "--max_new_tokens", 8, "--limit", 2, "--out", "runs/eval")
    out = run("evaluate.py", "--tasks", "prompts.jsonl", "--drafters", tiny_drafter_dir, *options)
    assert re.search(r"tiny-drafter, alone: tau \d\.\d\d, \d+\.\d\d times as fast as plain", out)
    assert len(json.loads(Path("runs/eval/summary.json").read_text())["rows"]) > 0
    # Two folders of one name are told apart.
    shutil.copytree(tiny_drafter_dir, "tiny-drafter")
    drafters = (tiny_drafter_dir, "tiny-drafter")
    out = run("evaluate.py", "--tasks", "prompts.jsonl", "--drafters", *drafters, "--dtype", "float32", "--limit", 1)
    assert f"{tiny_drafter_dir}, alone: tau" in out and ": tiny-drafter, alone: tau" in out


def launched(script, *arguments):
    """What a script prints that runs as two processes of a CPU."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command = [*launch, "--config_file", EXAMPLES / "accelerate" / "cpu.yaml", EXAMPLES / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_processes_share_the_work_and_tell_it_once(run, tiny_target_dir, tiny_drafter_dir):
    models = ("--target", tiny_target_dir, "--dtype", "float32", "--max_new_tokens", "8")
    out = launched("generate.py", "Say tea", "Say sun", "Say rain", *models, "--drafter", tiny_drafter_dir)
    assert re.findall(r"> Say (\w+)", out) == ["tea", "sun", "rain"]
    assert sorted(re.findall(r"\((\d+) tokens", out)) == ["16", "8"]
    options = ("--tasks", "prompts.jsonl", "--limit", "5", "--out", "runs/eval")
    out = launched("evaluate.py", *models, "--drafters", tiny_drafter_dir, *options)
    assert out.count(", alone: tau") == 1
    assert {row["num_prompts"] for row in json.loads(Path("runs/eval/summary.json").read_text())["rows"]} == {5}


@pytest.mark.parametrize("rank", [0, 4])
def test_finetune_measures_before_and_after_and_pushes_with_a_card(run, hub, rank):
    arguments = ("--prompts", "prompts.jsonl", "--output_dir", "runs/tuned", "--max_steps", 2, "--max_answer", 12)
    training = ("--num_anchors", 4, "--per_device_train_batch_size", 2, "--num_eval_prompts", 0, "--report_to", "none")
    pushing = ("--push_to", "org/tuned", "--base_model", "org/Model", "--license", "mit", "--disable_tqdm", "true")
    out = run("finetune_drafter.py", *arguments, *training, *pushing, "--lora_rank", rank)
    taus = dict(re.findall(r"(before|after), alone: tau (\d\.\d\d)", out))
    assert set(taus) == {"before", "after"}
    files = hub.files("org/tuned")
    assert ("adapter_config.json" in files) == (rank > 0) and "evaluations/domain.json" in files
    assert "license: mit" in files["README.md"].decode() and taus["after"] in files["README.md"].decode()
    assert not [name for name in files if name.endswith(".jsonl") or name.startswith("states")]
    tuned = AutoDrafter.from_pretrained("runs/tuned")
    assert hasattr(tuned, "peft_config") == (rank > 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--held_back", 0), "held_out must be a positive whole number"),
        (("--push_to", "no//name"), "named as on the Hub"),
        (("--prompts", "one.jsonl"), "one.jsonl holds one prompt. Give two or more"),
        (("--drafter", "embedded/nowhere/at/all"), "There is no folder"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_finetune_says_what_is_wrong_before_the_target_answers(run, options, message):
    Path("one.jsonl").write_text(json.dumps({"prompt": "Say tea"}))
    with pytest.raises(ValueError, match=message):
        run("finetune_drafter.py", "--prompts", "prompts.jsonl", "--output_dir", "runs/tuned", *options)
    assert not list(Path().glob("runs/tuned/*.jsonl"))


def test_finetune_reads_any_file_of_prompts_and_keeps_those_of_its_folder(run):
    Path("prompts.json").write_text(json.dumps([{"prompt": f"Say {word}"} for word in WORDS]) + "\n\n")
    arguments = ("--output_dir", "runs/tuned", "--max_steps", 1, "--max_answer", 4, "--num_anchors", 2)
    quick = ("--num_eval_prompts", 0, "--report_to", "none", "--disable_tqdm", "true")
    assert "after, alone" in run("finetune_drafter.py", "--prompts", "prompts.json", *arguments, *quick)
    held_back = Path("runs/tuned/held_back.jsonl").read_text()
    assert held_back == '{"prompt": "Say chess"}\n'
    with pytest.raises(ValueError, match="asked.jsonl is of a run with other prompts"):
        run("finetune_drafter.py", "--prompts", "prompts.jsonl", *arguments, *quick)
    assert Path("runs/tuned/held_back.jsonl").read_text() == held_back


def test_train_without_anything_held_out(run):
    turns = [{"role": "user", "content": "Say tea"}, {"role": "assistant", "content": "tea, tea"}]
    Path("text.jsonl").write_text(json.dumps({"messages": turns}))
    options = ("--max_steps", 1, "--num_anchors", 2, "--report_to", "none", "--disable_tqdm", "true")
    assert "Saved to runs/one" in run("train_drafter.py", "--data", "text.jsonl", "--output_dir", "runs/one", *options)


def test_push_without_sending(run, tiny_drafter_dir):
    out = run("push.py", tiny_drafter_dir, "me/Model-drafter", "--base_model", "org/Model", "--dry_run")
    assert {"README.md", "config.json", "model.safetensors"} <= set(out.split()) and "base_model: org/Model" in out


def test_push(run, hub, tiny_drafter_dir):
    out = run("push.py", tiny_drafter_dir, "org/drafter", "--base_model", "org/Model", "--license", "mit")
    assert "org/drafter" in out and b"license: mit" in hub.files("org/drafter")["README.md"]


def test_average(run, tiny_drafter_dir):
    out = run("average_drafters.py", tiny_drafter_dir, tiny_drafter_dir, "--out", "mean")
    assert "The mean of 2 drafters: mean" in out and AutoDrafter.from_pretrained("mean").config.block_size == 4


def test_average_of_two_shapes_is_refused(run, tiny_target_dir, tiny_drafter_dir):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    DSparkModel.from_target(target, num_hidden_layers=1, mask_token_id=258).save_pretrained("other")
    with pytest.raises(ValueError, match="differ in shape. Give checkpoints of one run"):
        run("average_drafters.py", tiny_drafter_dir, "other", "--out", "mean")


def write_task_prompts(kind, path, seed=1):
    command = [sys.executable, EXAMPLES / "task_prompts" / "write.py", kind, "--number", "300"]
    subprocess.run([*command, "--seed", str(seed), "--out", path], check=True)
    chats = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    return [" >> ".join(message["content"] for message in messages) for messages in chats]


@pytest.mark.parametrize("kind", ["problems", "functions", "chats"])
def test_task_prompts_depend_on_the_seed_alone_and_are_all_different(tmp_path, kind):
    first, again, other = (write_task_prompts(kind, tmp_path / f"{i}", seed) for i, seed in enumerate((1, 1, 2)))
    assert first == again and len(set(first)) == 300
    # The same templates, mostly with other numbers and names.
    assert len(set(first) & set(other)) < 60


def test_word_problems_and_chats_have_every_brace_filled(tmp_path):
    problems, chats = (write_task_prompts(kind, tmp_path / kind) for kind in ("problems", "chats"))
    assert not [text for text in problems + chats if re.search(r"[{}|@]", text.replace("\\boxed{}", ""))]
    assert all(all(turn.strip() for turn in text.split(" >> ")) and text.count(" >> ") == 1 for text in chats)
    # "a unit test" is right.
    assert not [text for text in problems + chats if re.search(r"\ba (?!uni)[aeiou]", text)]
    # Whom it begins with is spoken of as they are.
    assert not [text for text in problems if re.match("(Anna|Mia|Rosa) ", text) and " He " in text]


def test_calls_in_functions_to_write_return_what_they_say(tmp_path):
    functions = runpy.run_path(str(EXAMPLES / "task_prompts" / "functions.py"))
    prompts = write_task_prompts("functions", tmp_path / "out")
    shown = [call for text in prompts for call in re.findall(r">>> (.*)\n    (.*)\n", text)]
    assert len(shown) > 200
    for call, result in shown:
        assert repr(eval(call, functions)) == result
    # Bodies are left out.
    assert {re.split("\"{3}|'{3}", text)[-1].strip() for text in prompts} == {"", "```"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_docstrings_start_scripts_with_flags_that_exist(path):
    # Python itself joins lines that end in a backslash.
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    lines = [words for words in commands(docstring) if words[0] in ("python", "accelerate")]
    assert lines and all(path.name in " ".join(words) for words in lines)
    for words in lines:
        check_command(words)
    is_launched = any(words[0] == "accelerate" for words in lines)
    assert is_launched or path.name in ("push.py", "average_drafters.py", "grammar.py")


def test_every_script_is_on_the_page_of_examples():
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    names = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh", ".ipynb")]
    assert [name for name in names if f"({name})" not in page] == []
