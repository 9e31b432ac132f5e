"""The command as a whole: what it offers, and how it refuses."""

import json
import re
import runpy
import shutil
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from dspark_hf.cli.main import app

COMMANDS = ["demo", "generate", "chat", "serve", "evaluate", "diagnose", "report", "bench", "regenerate", "train",
            "cache", "convert", "push", "env"]  # fmt: skip


def test_every_command_is_offered(dspark):
    outcome = dspark("--help")
    assert outcome.code == 0
    assert all(f" {command} " in outcome.out for command in COMMANDS)


@pytest.mark.parametrize(
    "command",
    [[command] for command in COMMANDS if command != "bench"] + [["bench", "generate"], ["bench", "exactness"]],
    ids=" ".join,
)
def test_help_has_an_example(dspark, command):
    outcome = dspark(*command, "--help")
    assert outcome.code == 0
    assert f"dspark {' '.join(command)}" in outcome.out.split("Example", 1)[1]


def shown(*command: str) -> str:
    """Help as it looks on a terminal of 80 columns."""
    return CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).invoke(app, [*command, "--help"]).stdout


def test_examples_can_be_copied():
    # One line each, whatever its length, with what stands in brackets.
    line = 'train --config examples/recipes/embedded.yaml "data=[text.jsonl]" max_steps=500 block_size=5 --resume'
    assert f"    dspark {line}\n" in shown("train")
    assert "http://localhost:8000/v1 \\\n          --prompts mlabonne" in shown("regenerate")


def test_help_of_train_has_every_key_of_a_recipe():
    from dspark_hf.trainers.recipes.recipe import known_keys

    said = set(re.findall(r"\w+", shown("train").split("\nKeys:")[1]))
    assert {key.rpartition(".")[2] for key in known_keys({})} <= said


def test_no_option_is_cut():
    text = shown("regenerate")
    assert "--max-prompt-tokens <int>" in text and "\u2026" not in text


def test_version_and_completion(dspark):
    assert dspark("--version").out == f"dspark_hf {version('dspark_hf')}"
    assert "--install-completion" in dspark("--help").out


def test_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["python", "train", "--help"])
    with pytest.raises(SystemExit) as outcome:
        runpy.run_module("dspark_hf", run_name="__main__")
    assert outcome.value.code == 0 and "dspark train [OPTIONS]" in capsys.readouterr().out


def test_missing_package_is_one_line(dspark, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openai", None)
    out = tmp_path / "out.jsonl"
    outcome = dspark("regenerate", "--server", "http://localhost:9/v1", "--prompts", __file__, "--out", str(out))
    assert outcome.code == 2 and "error: Asking a server needs the openai package" in outcome.err
    assert "Traceback" not in outcome.err and not out.exists()


def test_env_prints_versions_and_device(dspark):
    import torch

    outcome = dspark("env")
    assert outcome.code == 0
    assert f"torch {torch.__version__.split('+')[0]}" in outcome.out
    assert f"threads {torch.get_num_threads()}" in outcome.out


def test_env_says_whose_attention_runs(dspark, monkeypatch):
    from dspark_hf.ops.dispatch import Choice
    from dspark_hf.ops.row_attention.flash import Flash

    monkeypatch.setattr("dspark_hf.ops.dispatch.choose", lambda *_: Choice("triton", "on cuda:0"))
    monkeypatch.setattr(
        "dspark_hf.ops.row_attention.flash.flash_for", lambda _: Flash(None, "flash-attn 2.8.3 is off")
    )
    assert "kernel row_attention triton: on cuda:0 flash attention flash-attn 2.8.3 is off" in dspark("env").out
    monkeypatch.setenv("DSPARK_HF_KERNELS", "triton")
    assert "flash attention" not in dspark("env").out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "int8"], "--dtype must be one of float32, bfloat16, float16, got 'int8'"),
        (["--device", "toaster"], "--device must be auto, cpu, cuda or cuda:N, got 'toaster'"),
        (["--target", "/no/such/folder"], "/no/such/folder"),
        (["--drafter", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_bad_options_are_one_line_and_code_2(dspark, models, options, message):
    outcome = dspark("generate", "hi", *models, *options)
    assert outcome.code == 2
    # Loading may have shown its progress first.
    assert message in outcome.err.split("error: ")[1]
    assert "Traceback" not in outcome.err


def test_missing_gpu_is_named(dspark, models):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    outcome = dspark("generate", "hi", *models, "--device", "cuda")
    assert outcome.code == 2
    assert "torch finds no CUDA device here. Use --device cpu." in outcome.err


def test_interrupt_is_one_line(dspark, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("dspark_hf.evaluation.origin.versions", interrupt)
    outcome = dspark("env")
    assert outcome.code == 130 and outcome.err.startswith("stopped; what was written is kept")


def test_a_mistake_of_the_library_keeps_its_traceback(dspark, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("dspark_hf.evaluation.origin.versions", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        dspark("env")


@pytest.mark.parametrize(("name", "full"), [("fp16", "float16"), ("bf16", "bfloat16"), ("float32", "float32")])
def test_dtypes_have_short_names(name, full):
    from dspark_hf.cli.models import check_dtype

    assert check_dtype(name) == full
    with pytest.raises(ValueError, match="--target-dtype must be one of float32, bfloat16, float16, auto, got 'int8'"):
        check_dtype("int8", "--target-dtype", auto=True)


def test_short_names_of_dtypes_work_everywhere(dspark, models, tmp_path, tiny_target_dir):
    assert dspark("generate", "hello", *models, "--dtype", "fp16", "--max-new-tokens", "3").code == 0
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"turns": ["hello"]}\n')
    options = ["--max-new-tokens", "3", "--no-plain", "--out", tmp_path / "run"]
    evaluated = dspark("evaluate", *models, "--task", prompts, "--dtype", "bf16", *options)
    assert evaluated.code == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["made_with"]["dtype"] == "bfloat16"
    data = tmp_path / "data.jsonl"
    data.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bcd"}]}\n')
    for dtype, target_dtype in (("float16", "fp32"), ("fp16", "float32")):
        options = ["--data", data, "--target", tiny_target_dir, "--dtype", dtype, "--target-dtype", target_dtype]
        assert dspark("cache", *options, "--out", tmp_path / dtype).code == 0


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "Hello"],
        ["chat"],
        ["diagnose"],
        ["regenerate", "--prompts", "prompts.jsonl", "--out", "out.jsonl"],
        ["evaluate", "--task", "prompts.jsonl", "--out", "run"],
    ],
    ids=lambda command: command[0],
)
def test_options_of_the_template_are_refused_before_the_target_is_loaded(
    dspark, tiny_target_dir, tiny_drafter_dir, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"turns": ["Hello"]}\n')
    target = shutil.copytree(tiny_target_dir, tmp_path / "target")
    for weights in target.glob("*.safetensors"):
        weights.unlink()
    named = [target, tiny_drafter_dir] if command[0] == "diagnose" else ["--target", target]
    if command[0] not in ("diagnose", "regenerate"):
        named += ["--drafter", tiny_drafter_dir]
    outcome = dspark(*command, *named, "--thinking")
    assert outcome.code == 2 and "makes the same prompt with and without --thinking" in outcome.err
