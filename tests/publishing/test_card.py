"""Cards tell what is known, and nobody's own words are lost."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from transformers import AutoModelForCausalLM

from dspark_hf import AutoDrafter, Calibration, DFlashModel, DraftTrainingArguments, Eagle3Model
from dspark_hf.generation.lengths.calibration import drafter_fingerprint
from dspark_hf.provenance import command_line
from dspark_hf.publishing import CardFacts, add_evaluation, push_folder, write_card, write_training_record
from dspark_hf.publishing.cards.card import is_generated
from dspark_hf.publishing.cards.plots import calibration_error
from dspark_hf.publishing.cards.serving import serving_commands
from dspark_hf.publishing.engines import Checkpoint
from dspark_hf.publishing.folder import DrafterFolder

BINS = [
    {"confidence": 0.25, "accepted": 0.5, "count": 1},
    {"confidence": 0.9, "accepted": 0.8, "count": 3},
]
RESULT = {
    "target": "/home/someone/target",
    "data": "/home/someone/mt-bench.jsonl",
    "dtype": "bfloat16",
    "settings": {"temperature": 0.0, "max_new_tokens": 128, "batch_size": 1},
    "num_prompts": 10,
    "num_rounds": 80,
    "tau": 2.4567,
    "accepted_per_slot": [0.8, 0.5],
    "accepted_per_slot_given_previous": [0.8, 0.625],
    "reliability": BINS,
    "ratio": {"median": 1.5, "total": 1.4, "median_to_fastest_plain": 1.25},
    "calls": [{"tau": 2.0}],
    "provenance": {
        "command": "dspark bench generate --data /home/someone/mt-bench.jsonl",
        "commit": "0123456789abcdef",
        "versions": {"torch": "2.13"},
        "machine": {"device_name": "A processor", "platform": "secret-host", "cpu_count": 2, "threads": 1},
        "time": "2026-01-01",
    },
}


@pytest.fixture
def folder(tmp_path, tiny_drafter_dir):
    return Path(shutil.copytree(tiny_drafter_dir, tmp_path / "drafter"))


@pytest.fixture
def evaluated(folder, tmp_path):
    for name, result in (("chat", RESULT), ("code", {"tau": 1.5})):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
        add_evaluation(folder, tmp_path / f"{name}.json")
    return folder


def card(folder):
    return (Path(folder) / "README.md").read_text()


def test_only_what_is_known_appears(folder):
    assert write_card(folder)
    text = card(folder)
    num_parameters = sum(weight.numel() for weight in AutoDrafter.from_pretrained(folder).parameters())
    assert (
        f"{num_parameters:,} parameters" in text
        and "taps after layers 0, 2 of 4, counted from 0" in text
        and "up to 4 drafts a round" in text
    )
    assert 'target = "OWNER/TARGET"  # the model it was trained for' in text  # how it is used needs no name
    for heading in ("## How it was trained", "## What it reaches", "## Does it know"):
        assert heading not in text
    for word in ("None", "nan", "png", "base_model", "license", "datasets", "model-index"):
        assert word not in text
    assert not list(folder.glob("*.png"))
    data = ModelCard(text).data
    assert data.tags == ["dspark", "speculative-decoding", "drafter"]
    assert (data.library_name, data.pipeline_tag) == ("dspark_hf", "text-generation")


def test_everything_that_is_known_appears(evaluated):
    (evaluated / "calibration.json").write_text(json.dumps({"temperatures": [1.0, 1.25, 0.9, 2.0]}))
    arguments = DraftTrainingArguments("out", learning_rate=1e-3, max_steps=7, hub_token="hf_abcdefghij", report_to=[])
    write_training_record(
        evaluated, arguments=arguments, data=["org/chats"], command="python train.py --data /x/y.jsonl", num_rows=12
    )
    facts = CardFacts("org/small", "org/Model", license="mit", datasets=("org/chats",), tags=("chat", "dspark"))
    assert write_card(evaluated, facts)
    text = card(evaluated)
    data = ModelCard(text).data
    assert (data.base_model, data.base_model_relation, data.license) == ("org/Model", "adapter", "mit")
    assert (data.datasets, data.tags[3:]) == (["org/chats"], ["chat"])
    assert {(one.dataset_name, one.metric_value) for one in data.eval_results} == {("chat", 2.4567), ("code", 1.5)}
    assert "| chat (mt-bench.jsonl) | greedy | 10 | 128 | bfloat16 | 2.46 | 1.25x |" in text
    assert "| code |  |  |  |  | 1.50 |  |" in text
    assert (
        "`dspark bench generate --data mt-bench.jsonl`; commit 0123456789ab of dspark_hf; A processor, 1 thread\n"
        in text
    )
    assert "python train.py --data y.jsonl" in text and "Data: `org/chats`." in text
    assert "| `learning_rate` | 0.001 |" in text and "| `max_steps` | 7 |" in text and "| `num_rows` | 12 |" in text
    assert "(1, 1.25, 0.9, 2)" in text
    for secret in ("/home", "secret-host", "hf_abcdefghij", "output_dir"):
        assert secret not in text + "".join(path.read_text() for path in evaluated.rglob("*.json"))
    for picture in ("acceptance.png", "reliability.png"):
        assert f"]({picture})" in text
        with Image.open(evaluated / picture) as image:
            assert len(image.convert("L").getcolors()) > 10


def test_pictures_repeat_byte_for_byte(evaluated):
    write_card(evaluated)
    first = {path.name: path.read_bytes() for path in evaluated.glob("*.png")}
    assert write_card(evaluated)
    assert first == {path.name: path.read_bytes() for path in evaluated.glob("*.png")} and len(first) == 2


def test_words_of_ones_own_are_kept(folder, evaluated):
    assert write_card(folder) and write_card(folder)
    assert is_generated(card(folder))
    edited = card(folder).replace("# ", "# My ", 1)
    (folder / "README.md").write_text(edited)
    assert not write_card(folder) and card(folder) == edited
    (folder / "README.md").write_text("Tau is 3.\n")
    assert not write_card(folder) and card(folder) == "Tau is 3.\n"
    assert write_card(folder, overwrite=True) and is_generated(card(folder))


def test_words_on_the_hub_are_kept(hub, folder):
    write_card(folder, CardFacts("org/drafter"))
    push_folder(folder, "org/drafter")
    HfApi().upload_file(path_or_fileobj=b"By hand.", path_in_repo="README.md", repo_id="org/drafter")
    push_folder(folder, "org/drafter")
    assert hub.files("org/drafter")["README.md"] == b"By hand."
    (folder / "README.md").write_text("Also by hand.")
    push_folder(folder, "org/drafter")
    assert hub.files("org/drafter")["README.md"] == b"Also by hand."
    write_card(folder, overwrite=True)
    push_folder(folder, "org/drafter", replace_card=True)
    assert is_generated(hub.files("org/drafter")["README.md"].decode())


def test_figures_stay_with_their_weights(hub, evaluated, tiny_drafter_dir):
    whose = drafter_fingerprint(AutoDrafter.from_pretrained(tiny_drafter_dir))
    Calibration([1.0] * 4, made_for={"drafter": whose}).save(evaluated)
    write_card(evaluated)
    push_folder(evaluated, "org/drafter")
    full = hub.files("org/drafter")
    assert {"calibration.json", "evaluations/chat.json", "acceptance.png", "reliability.png"} <= set(full)
    drafter = AutoDrafter.from_pretrained("org/drafter")
    drafter.push_to_hub("org/drafter")  # the same weights, of which memory knows less
    assert hub.files("org/drafter") == full
    drafter.fc.weight.data.zero_()
    drafter.push_to_hub("org/drafter")
    assert set(hub.files("org/drafter")) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert "2.46" not in hub.files("org/drafter")["README.md"].decode()


def test_serving_commands(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Qwen3DSparkModel"], "block_size": 16, "sample_from_anchor": False}
    alone = [one.command for one in serving_commands(Checkpoint(config), "org/drafter", "org/Model")]
    assert alone[0] == (
        'vllm serve org/Model --speculative-config \'{"method":"dspark","model":"org/drafter",'
        '"num_speculative_tokens":15,"draft_sample_method":"probabilistic"}\''
    )
    assert alone[1] == (
        "python -m sglang.launch_server --model-path org/Model --speculative-algorithm DSPARK "
        "--speculative-draft-model-path org/drafter"
    )
    inside = serving_commands(Checkpoint(config), "org/Model-DSpark", "org/Model-DSpark", "dspark")[0].command
    assert inside.startswith('hf download org/Model-DSpark --include "dspark/*" --local-dir Model-DSpark\nvllm serve')
    assert '"model":"Model-DSpark/dspark"' in inside
    (folder / "config.json").write_text(json.dumps(config))
    write_card(folder, CardFacts("org/drafter", "org/Model"))
    assert all(command in card(folder) for command in alone)
    write_card(folder, CardFacts("org/drafter"), overwrite=True)
    assert "## Serve" not in card(folder)  # of which target?


@pytest.mark.parametrize(("program", "name"), [("/x/dspark_hf/__main__.py", "dspark"), ("/x/train.py", "train.py")])
def test_the_module_is_the_command(monkeypatch, program, name):
    monkeypatch.setattr(sys, "argv", [program, "train", "max_steps=1 2"])
    assert command_line() == f"{name} train 'max_steps=1 2'"


def test_calibration_error():
    assert calibration_error(BINS) == pytest.approx((0.25 + 3 * 0.1) / 4)
    assert calibration_error([]) == 0.0


def test_evaluations_may_lack_everything_but_tau(folder, tmp_path):
    unknown = {"settings": None, "ratio": None, "provenance": {"command": None, "machine": None}}
    for number, content in enumerate(({}, {"provenance": None}, unknown)):
        (tmp_path / f"{number}.json").write_text(json.dumps({"tau": 1.5, **content}))
        add_evaluation(folder, tmp_path / f"{number}.json")
    assert write_card(folder)
    assert "| 1.50 |" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, "{broken", '{"ratio": 2}', '{"tau": NaN}', "[1]"])
def test_evaluations_without_figures_are_refused(folder, tmp_path, content):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match="no evaluation at|not readable JSON|holds no tau|must hold a JSON object"):
        add_evaluation(folder, tmp_path / "x.json")
    assert not (folder / "evaluations").exists()


@pytest.mark.parametrize("temperatures", [[1.0], [1.0, 1.0, 0.0, 1.0], "warm", None])
def test_a_calibration_that_does_not_fit_is_refused(folder, temperatures):
    (folder / "calibration.json").write_text(json.dumps({"temperatures": temperatures}))
    with pytest.raises(ValueError, match="must hold `temperatures`, 4 numbers above 0"):
        write_card(folder)


def test_a_damaged_or_foreign_folder_is_refused(folder, tiny_target_dir, tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json in"):
        write_card(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no drafter in the flat layout: .*composite.*hf upload OWNER"):
        write_card(tiny_target_dir)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-8])
    with pytest.raises(ValueError, match="cannot be read .*damaged"):
        write_card(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors .*not whole"):
        write_card(folder)


@pytest.mark.parametrize("model_cls", [DFlashModel, Eagle3Model])
def test_other_kinds_have_cards_too(model_cls, tiny_target_dir, tmp_path):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    model_cls.from_target(target, num_hidden_layers=1, target_layer_ids=[0, 2]).save_pretrained(tmp_path)
    write_card(tmp_path, CardFacts("org/drafter", "org/Model"))
    text, name = card(tmp_path), {DFlashModel: "A DFlash", Eagle3Model: "An EAGLE-3"}[model_cls]
    assert f"{name} drafter for [org/Model](https://huggingface.co/org/Model)" in text
    assert "up to 7 drafts a round" in text and "head" not in text.split("## Use")[0]
    reason = {DFlashModel: "it has no LlamaDSparkModel", Eagle3Model: "it reads EAGLE-3 drafters in"}
    for engine in ("vLLM", "SGLang"):
        assert f"{engine} cannot load this drafter: {reason[model_cls]}" in text
    assert "What loads it is transformers with dspark_hf, as above." in text


def test_parameters_are_counted(tiny_drafter_dir):
    expected = sum(weight.numel() for weight in AutoDrafter.from_pretrained(tiny_drafter_dir).parameters())
    assert DrafterFolder.read(tiny_drafter_dir).num_parameters == expected


def run_of(*drafters, **changes):
    """The summary of an evaluation of two tasks, as `dspark evaluate` writes it."""
    ways = {"plain": {"kind": "plain"}, **{name: {"kind": "drafter", "drafter": name} for name in drafters}}
    rows = [
        {
            "task": task, "category": None, "cut": cut, "temperature": temperature, "batch_size": 8, "way": way,
            "num_prompts": 20, "num_rounds": 50, "tau": 2.0 + temperature, "tau_interval": [1.8, 2.2],
            "accepted_per_slot": [0.7, 0.4], "accepted_per_slot_given_previous": [0.7, 0.57],
            "confidence": {"reliability": BINS, "ece": 0.1},
            "ratio": {"median": 1.5, "interval": [1.4, 1.6], "total": 1.5, "num_calls": 3},
        }
        for temperature in (0.0, 1.0)
        for task, cut in (("gsm8k", "20 of 1319"), ("chat", None), ("all tasks", None))
        for way in drafters
    ]  # fmt: skip
    rows += [{**row, "way": "plain", "tau": None} for row in rows[:1]] + [
        {**row, "category": "qa"} for row in rows[:1]
    ]
    made = {
        "ways": ways, "dtype": "bfloat16", "template": "abcd", "target": "Model",
        "settings": {"max_new_tokens": 64, "thinking": False}, "tasks": [{"name": "gsm8k"}, {"name": "chat"}],
    }  # fmt: skip
    return {"made_with": made, "rows": rows, "provenance": RESULT["provenance"], **changes}


def write_run(folder, summary):
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_run_gives_a_row_for_each_task_and_temperature(folder, tmp_path):
    add_evaluation(folder, write_run(tmp_path / "all", run_of("tiny")))
    assert write_card(folder)
    text = card(folder)
    lines = [line for line in text.splitlines() if line.startswith("| gsm8k")]
    same = "8 | 20 | 64 | bfloat16"
    assert lines == [
        f"| gsm8k (20 of 1319) | tiny | {how} | {same} | {tau} \\[1.80, 2.20\\] | 1.50 \\[1.40, 1.60\\]x |"
        for how, tau in (("greedy", "2.00"), ("T = 1", "3.00"))
    ]
    assert "prompts: chat template, thinking off; speed against plain generate(), dynamic cache, bfloat16" in text
    assert "name: chat, T = 1, tiny" in text and "acceptance.png" in text and "reliability.png" in text
    record = json.loads((folder / "evaluations" / "all.json").read_text())
    assert record["data"] == "all tasks" and len(record["rows"]) == 6 and "secret-host" not in json.dumps(record)


def test_what_was_looked_up_is_not_the_drafters(folder, tmp_path):
    summary = run_of("tiny")
    for row in summary["rows"][:3]:
        row["lookup_share"] = 0.3
    add_evaluation(folder, write_run(tmp_path / "all", summary))
    assert write_card(folder)
    greedy, sampled = (line for line in card(folder).splitlines() if line.startswith("| gsm8k"))
    assert "2.00 \\[1.80, 2.20\\] with lookup |" in greedy and "with lookup" not in sampled
    _, metadata, _ = card(folder).split("---\n", 2)
    assert metadata.count("name: mean tokens per round with lookup") == 3 == metadata.count("tokens per round\n")


def test_of_several_drafters_the_one_of_that_name(folder, tmp_path):
    run = write_run(tmp_path / "both", run_of("drafter", "other"))
    add_evaluation(folder, run)
    record = json.loads((folder / "evaluations" / "both.json").read_text())
    assert {row["way"] for row in record["rows"]} == {"drafter"}
    with pytest.raises(ValueError, match="figures of the drafters first, second, and none is called 'drafter'"):
        add_evaluation(folder, write_run(tmp_path / "others", run_of("first", "second")))
    with pytest.raises(ValueError, match="holds no tau of a drafter"):
        add_evaluation(folder, write_run(tmp_path / "none", run_of()))
    with pytest.raises(ValueError, match="is no whole summary of an evaluation"):
        add_evaluation(folder, write_run(tmp_path / "torn", {"made_with": {}, "rows": [{}]}))
    with pytest.raises(ValueError, match="rows must be rows with task, way, temperature and tau"):
        bad = run_of("drafter")
        bad["rows"][0]["ratio"] = {"median": "fast"}
        add_evaluation(folder, write_run(tmp_path / "bad", bad))
