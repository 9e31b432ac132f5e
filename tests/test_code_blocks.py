"""Every block of code in README and docs runs, page by page and in order, on tiny models; or says what it needs."""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from code_blocks import LANGUAGES, OTHERS, ROOT, blocks_of, check_command, commands, indented_blocks_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark_hf import AutoDrafter
from dspark_hf.hub import embedded

PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md",
         *sorted((ROOT / "docs").rglob("*.md"))]  # fmt: skip
WITH_CODE = [page for page in PAGES if any(block.language in LANGUAGES for block in blocks_of(page))]
# Records of what was run at a commit, with the options of that time.
RECORDS = {"log.md", "numbers.md"}
NEEDS = (
    "a GPU", "several GPUs", "the Hub", "vLLM", "SGLang", "a server", "minutes", "a clone", "a thinking target",
    "packages",
)  # fmt: skip
# What changes the shell, takes minutes, or does not end.
NOT_RUN = ("--install-completion", "--show-completion", "demo", "serve")
# What is large on a page, and small in a test.
SMALL = {
    "--synthesize": "4", "--max-new-tokens": "12", "--max-prompt-tokens": "40", "--max_steps": "2",
    "max_steps": "2", "max_length": "96", "num_anchors": "4", "markov_rank": "4", "eval_steps": "2", "save_steps": "2",
    "held_out": "2", "--num-prompts": "2", "--num-samples": "40",
}  # fmt: skip
# What a recipe for a real target has otherwise; a tiny one has four layers and 260 tokens.
TINY = (
    "num_synthetic=4", "max_steps=2", "max_length=96", "num_anchors=4", "held_out=2", "num_eval_prompts=1",
    "eval_max_new_tokens=4", "per_device_train_batch_size=2", "compile_loss=false", "bf16=false", "report_to=none",
    "save_strategy=no", "load_best_model_at_end=false", "eval_strategy=no", "logging_steps=1", "openings=null",
)  # fmt: skip
TINY_SHAPE = (
    "target_layer_ids=[0, 2]", "draft_vocab_size=200", "intermediate_size=32", "markov_rank=4", "mask_token_id=258",
)  # fmt: skip
WORDS = ("tea", "sun", "moon", "bread", "rain", "chess", "snow", "maps")
QUESTION, ANSWER = {"role": "user", "content": "Say {}"}, {"role": "assistant", "content": "{} it is."}
TEXT = [json.dumps({"messages": [QUESTION, ANSWER]}).replace("{}", word) for word in WORDS]
PROMPTS = [json.dumps({"turns": [f"Say {word}"]}) for word in WORDS]


def ids(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def workplace(monkeypatch, tmp_path, tiny_target_dir, tiny_drafter_dir):
    """A folder with what pages count on: examples/, `prompts.jsonl`, `text.jsonl`, a drafter in `runs/first`."""
    monkeypatch.setattr(embedded, "resolve_target", lambda name: tiny_target_dir if name == "embedded" else name)
    monkeypatch.setattr(
        "dspark_hf.hub.load.resolve_drafter", lambda name: tiny_drafter_dir if name == "embedded" else str(name)
    )
    monkeypatch.setattr(
        embedded, "resolve_drafter", lambda name: tiny_drafter_dir if name == "embedded" else str(name)
    )
    monkeypatch.setenv("DSPARK_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    monkeypatch.chdir(tmp_path)
    for name in ("examples", "benchmarks", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, lines in (("prompts.jsonl", PROMPTS), ("text.jsonl", TEXT)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    shutil.copytree(tiny_drafter_dir, tmp_path / "runs" / "first")
    return tmp_path


@pytest.fixture
def given(tiny_target_dir, tiny_drafter_dir):
    """The names that pages go on from: those of the quickstart."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_target_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    drafter = AutoDrafter.from_pretrained(tiny_drafter_dir)
    messages = [{"role": "user", "content": "Say tea"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return {"tokenizer": tokenizer, "model": model, "drafter": drafter, "messages": messages, "inputs": inputs}


def small(words: list[str]) -> list[str]:
    """A command with small numbers, and what a training takes from a recipe cut down."""
    if words[1] == "train" and "--estimate" not in words:
        goes_on = any(word.startswith("start_from=") for word in words)
        data = () if any(word.startswith("data=") for word in words) else ("data=[text.jsonl]",)
        return [*words, *data, *TINY, *(() if goes_on else TINY_SHAPE)]
    # What is long by default.
    short = {"evaluate": ["--max-new-tokens", "8", "--limit", "2"], "regenerate": ["--max-new-tokens", "8"]}
    words = [*words, *short.get(words[1], ())]
    made = []
    for word in words:
        key, is_pair, _ = word.partition("=")
        name = key.rpartition(".")[2]
        made.append(f"{key}={SMALL[name]}" if is_pair and name in SMALL else word)
        if len(made) > 1 and words[len(made) - 2] in SMALL:
            made[-1] = SMALL[words[len(made) - 2]]
    return made


def small_code(code: str) -> str:
    """Python with small numbers."""
    code = re.sub(r"max_new_tokens=\d+", "max_new_tokens=8", code)
    return re.sub(r"(max_steps|eval_steps|save_steps)=[\d_]+", r"\1=2", code)


def run_command(words: list[str], dspark) -> None:
    """Run a command of this project in this process; of others, see that what they name is there."""
    check_command(words)
    if "--synthesize" in words:
        # A random target invents nothing.
        Path(words[words.index("--out") + 1]).write_text("".join(f"{line}\n" for line in TEXT))
    elif Path(words[0]).name == "dspark" and words[1] not in NOT_RUN:
        if words[1] == "regenerate" and "--resume" not in words:
            Path(words[words.index("--out") + 1]).unlink(missing_ok=True)
        outcome = dspark(*small(words)[1:])
        is_verdict = {"--check", "diagnose"} & set(words)
        assert outcome.code in ((0, 1, 2) if is_verdict else (0,)), (words, outcome)


@pytest.mark.parametrize("page", WITH_CODE, ids=ids)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_code_runs(page, workplace, given, dspark):
    names = dict(given)
    for block in blocks_of(page):
        if block.language == "python":
            code = compile(small_code(block.code), block.place, "exec")
            if block.needs is None:
                torch.manual_seed(0)
                exec(code, names)
        elif block.language == "bash":
            for words in commands(block.code):
                run_command(words, dspark) if block.needs is None else check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_blocks_say_what_they_are(page):
    for block in blocks_of(page):
        assert block.language in LANGUAGES | OTHERS, block.place
        assert block.needs is None or block.needs.startswith(NEEDS), block.place
    if page.name not in RECORDS:
        assert [
            text for text in indented_blocks_of(page) if text.startswith(("dspark ", "python ", "torchrun "))
        ] == []


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("dspark evaluate --task a.jsonl --out runs/a --batch 4", "--batch"),
        ("dspark evaluate --out runs/a", "task"),
        ("dspark train target=embedded max_step=5 output_dir=a", "max_step"),
        ("dspark measure", "measure"),
        ("python examples/train_drafter.py --dta text.jsonl", "--dta"),
        ("python examples/nothing.py", "nothing.py"),
        ("make everything", "everything"),
        ("pip install dspark_hf[all]", "all"),
        ("frobnicate --all x", "frobnicate"),
    ],
)
def test_a_command_that_does_not_exist_is_seen(command, what):
    with pytest.raises(ValueError, match=what):
        check_command(command.split())


def test_what_a_block_needs_stands_in_its_first_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\n# Needs a GPU.\ndspark demo\n```\n\n```python\nx = 1  # Needs the Hub.\n```\n")
    assert [block.needs for block in blocks_of(page)] == ["a GPU", None]
