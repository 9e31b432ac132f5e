"""Whatever way a drafter goes to the Hub, exactly a drafter's files arrive there."""

import errno
import json
import os
import pty
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hub_server import WRITE_TOKEN
from huggingface_hub import snapshot_download
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from dspark_hf import AutoDrafter, DraftTrainer, DraftTrainingArguments, DSparkForCausalLM, DSparkModel
from dspark_hf.hub.assemble import assemble
from dspark_hf.publishing import push_folder, write_training_record
from dspark_hf.publishing.cards.card import write_card
from dspark_hf.publishing.cards.facts import CardFacts
from dspark_hf.publishing.contents import DRAFTER, files_to_push
from dspark_hf.publishing.push import prepare
from dspark_hf.publishing.remote import Repository

SECRET = "a-secret-that-must-stay"
# What lies in folders of drafters: a trainer's and others' leavings, keys, texts.
FOREIGN = (
    "training_args.bin", "trainer_state.json", "optimizer.pt", "optimizer.safetensors", "pytorch_model.bin",
    "recipe.yaml", "recipe.yml", "my_recipe.yaml", "text.jsonl", "text.jsonl.provenance.json",
    "text.jsonl.failed.jsonl", "target-cache/row-1.safetensors", "target-cache/notes.json",
    "checkpoint-3/model.safetensors", "old/config.json", "old/model.safetensors", "wandb/run/files/config.yaml",
    "runs/events.out.tfevents.1", "events.out.tfevents.2", "train.log", "nohup.out", "eval_results.json.bak",
    "token.txt", "hf_token", ".env", ".netrc", ".ssh/id_rsa", "id_rsa", "key.pem", "credentials.json",
    "secrets.yaml", "README.md~", ".README.md.swp", "config.json.bak", "model.safetensors.1.tmp",
    "my-model.safetensors", "model-1-of-2.safetensors", "evaluations/notes.txt", "evaluations/.hidden.json",
    "evaluations/deep/x.json", "modeling_mine.py", "thesis.txt", "picture.png",
)  # fmt: skip

DRAFTER_FILES = {"README.md", "config.json", "model.safetensors"}
TRAINED = DRAFTER_FILES | {"training.json"}
RESUMABLE = {"config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
TARGET = {"README.md", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.fixture
def litter():
    """`litter(folder)`: lay foreign files there."""

    def lay(folder) -> None:
        for name in FOREIGN:
            path = Path(folder) / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(SECRET)

    return lay


@pytest.fixture
def uploaded(hub):
    """`uploaded(repo_id)`: its paths, after a look that nothing secret is in anything this Hub was ever sent."""

    def look(repo_id: str, revision: str = "main") -> set[str]:
        for blob in hub.blobs.values():
            assert SECRET.encode() not in blob and WRITE_TOKEN.encode() not in blob
        return set(hub.files(repo_id, revision)) - {".gitattributes"}

    return look


@pytest.fixture
def folder(tmp_path, tiny_drafter_dir, litter):
    """A drafter with everything that belongs to it, among much that does not."""
    folder = tmp_path / "run"
    AutoDrafter.from_pretrained(tiny_drafter_dir).save_pretrained(folder)
    (folder / "calibration.json").write_text(json.dumps({"temperatures": [1.0] * 4}))
    (folder / "generation_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "LICENSE").write_text("Do as you like.")
    (folder / "evaluations").mkdir()
    (folder / "evaluations" / "chat.json").write_text(json.dumps({"tau": 2.0, "accepted_per_slot": [0.5]}))
    write_training_record(folder, command="dspark train")
    litter(folder)
    return folder


WHOLE = TRAINED | {
    "calibration.json", "generation_config.json", "LICENSE", "evaluations/chat.json", "acceptance.png"
}  # fmt: skip


@pytest.fixture
def make_trainer(tiny_target_dir, tmp_path, litter):
    """`make_trainer(**arguments)`: it uploads to org/run from a folder full of foreign files."""

    def make(peft_config=None, processing_class=None, **arguments):
        target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
        drafter = DSparkModel.from_target(target, num_hidden_layers=1, block_size=4, markov_rank=8)
        rows = [{"input_ids": list(range(i, i + 20)), "loss_mask": [True] * 20} for i in range(16)]
        defaults = {"max_steps": 4, "save_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
                    "cache_budget": "10MB", "push_to_hub": True, "hub_model_id": "org/run", "hub_always_push": True,
                    "hub_token": WRITE_TOKEN, "num_eval_prompts": 0}  # fmt: skip
        litter(tmp_path / "run")
        training = DraftTrainingArguments(str(tmp_path / "run"), **{**defaults, **arguments})
        return DraftTrainer(drafter, target, training, train_dataset=rows, peft_config=peft_config,
                            processing_class=processing_class)  # fmt: skip

    return make


@pytest.mark.parametrize(
    ("strategy", "checkpoints"),
    [
        ("end", set()),
        ("every_save", set()),
        ("checkpoint", {f"last-checkpoint/{name}" for name in RESUMABLE}),
        ("all_checkpoints", {f"checkpoint-{step}/{name}" for step in (2, 4) for name in RESUMABLE}),
    ],
)
def test_every_strategy_of_a_trainer(uploaded, hub, make_trainer, strategy, checkpoints, caplog):
    trainer = make_trainer(hub_strategy=strategy)
    trainer.train()
    assert uploaded("org/run") == (set() if strategy == "end" else TRAINED | checkpoints)
    trainer.push_to_hub()
    assert uploaded("org/run") == TRAINED | checkpoints
    said = [record.getMessage() for record in caplog.records if "org/run" in record.getMessage()]
    assert "other things than a drafter's" in said[0] and "thesis.txt" in said[0] and ".ssh/" in said[0]
    assert AutoDrafter.from_pretrained("org/run").config.block_size == 4


def test_training_goes_on_from_a_checkpoint_on_the_hub(hub, make_trainer, tmp_path):
    whole = make_trainer(hub_strategy="all_checkpoints")
    whole.train()
    copy = snapshot_download("org/run", local_dir=tmp_path / "copy", allow_patterns="checkpoint-2/*")
    again = make_trainer(push_to_hub=False)
    again.train(resume_from_checkpoint=f"{copy}/checkpoint-2")
    assert again.state.global_step == 4
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())


def test_no_token_is_ever_pickled(hub, make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model()
    pickles = list((tmp_path / "run").rglob("training_args.bin"))
    assert len(pickles) == 3  # the folder's own, and two checkpoints'
    for path in pickles:
        arguments = torch.load(path, weights_only=False)
        assert arguments.hub_token is None and arguments.hub_model_id == "org/run"
    assert trainer.args.hub_token == WRITE_TOKEN  # of the one in use nothing is taken
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or WRITE_TOKEN.encode() not in path.read_bytes(), path


def test_other_ways_of_a_trainer(uploaded, hub, make_trainer, tiny_tokenizer):
    trainer = make_trainer(push_to_hub=False, processing_class=tiny_tokenizer)
    trainer.push_to_hub(blocking=False, revision="v2").result()
    tokenizer = TARGET - {"README.md", "config.json"}
    assert uploaded("org/run", "v2") == TRAINED | tokenizer
    trainer.args.push_to_hub = True
    trainer.save_model()  # it uploads, as transformers' does
    assert uploaded("org/run") == TRAINED | tokenizer


@pytest.mark.filterwarnings("ignore")
def test_an_adapter(uploaded, hub, make_trainer):
    trainer = make_trainer(peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    adapter = {"README.md", "config.json", "adapter_config.json", "adapter_model.safetensors", "training.json"}
    trainer.train()
    assert uploaded("org/run") == adapter
    trainer.push_to_hub()
    assert uploaded("org/run") == adapter
    assert b"written by dspark_hf" in hub.files("org/run")["README.md"]


def test_an_upload_that_fails_does_not_end_training(hub, make_trainer, caplog):
    trainer = make_trainer()
    hub.intercept = lambda method, path: 500 if "/commit/" in path else None
    trainer.train()
    assert trainer.state.global_step == 4
    assert any("of step 2 was not uploaded; training goes on" in record.getMessage() for record in caplog.records)


@pytest.fixture
def left_over(tmp_path, monkeypatch):
    """`left_over()`: what uploads have left in the folder of temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return lambda: [path.name for path in (tmp_path / "temporary").glob("dspark-upload-*")]


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_a_tokenizer_with_several_templates(uploaded, hub, make_trainer, tiny_tokenizer, left_over, strategy):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": tokenizer.chat_template}
    make_trainer(hub_strategy=strategy, processing_class=tokenizer).train()
    assert "additional_chat_templates/tool_use.jinja" in uploaded("org/run") and left_over() == []


def test_a_copy_that_fails_does_not_end_training(hub, make_trainer, left_over, monkeypatch, caplog):
    def no_space(*paths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dspark_hf.trainers.uploads.copy_files", no_space)
    trainer = make_trainer()
    trainer.train()
    assert trainer.state.global_step == 4 and left_over() == []
    said = [record.getMessage() for record in caplog.records]
    assert any("step 2 was not uploaded; training goes on" in one and "No space left" in one for one in said)


def test_a_drafter_in_memory_and_a_folder(uploaded, hub, folder):
    AutoDrafter.from_pretrained(folder).push_to_hub("org/memory")
    assert uploaded("org/memory") == DRAFTER_FILES | {"calibration.json"}
    push_folder(folder, "org/folder")
    assert uploaded("org/folder") == WHOLE
    push_folder(folder, "org/with-tokenizer", tokenizer=True)
    assert uploaded("org/with-tokenizer") == WHOLE | {"tokenizer.json"}
    with pytest.raises(ValueError, match="push_to_hub=True. is not supported: call drafter.push_to_hub.repo_id"):
        AutoDrafter.from_pretrained(folder).save_pretrained(folder, push_to_hub=True, repo_id="org/saved")


def test_shards(uploaded, hub, folder):
    drafter = AutoDrafter.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    drafter.save_pretrained(folder, max_shard_size="40KB")
    shards = {path.name for path in folder.glob("model-0000?-of-0000?.safetensors")}
    push_folder(folder, "org/folder")
    assert len(shards) > 1
    assert uploaded("org/folder") == WHOLE - {"model.safetensors"} | shards | {"model.safetensors.index.json"}


@pytest.mark.parametrize("include_target", [False, True])
def test_both_models(uploaded, hub, folder, dspark, tiny_target_dir, tiny_tokenizer, include_target, tmp_path, litter):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    target.push_to_hub("org/tiny-target")
    tiny_tokenizer.push_to_hub("org/tiny-target")
    root = TARGET | ({"model.safetensors", "generation_config.json"} if include_target else set())
    inside = {f"dspark/{name}" for name in WHOLE - {"README.md"}}
    options = ["--include-target"] if include_target else []
    outcome = dspark("push", folder, "org/both", "--target", "org/tiny-target", "--yes", *options)
    assert outcome.code == 0, outcome
    assert uploaded("org/both") == root | inside
    model = DSparkForCausalLM.from_pretrained("org/both")
    model.push_to_hub("org/memory", tokenizer=AutoTokenizer.from_pretrained("org/both"))
    memory = {"dspark/config.json", "dspark/model.safetensors", "dspark/calibration.json"}
    assert uploaded("org/memory") == root | memory
    model.save_pretrained(tmp_path / "both", tokenizer=tiny_tokenizer)
    litter(tmp_path / "both")
    litter(tmp_path / "both" / "dspark")
    (tmp_path / "both" / "modeling_mine.py").unlink()  # a target may bring code of such a name
    push_folder(tmp_path / "both", "org/folder")
    assert uploaded("org/folder") == root | memory


def test_the_command(uploaded, hub, folder, dspark):
    shown = dspark("push", folder, "org/run", "--dry-run")
    assert set(shown.out.split(" ---")[0].split()) == WHOLE and not hub.requests
    assert "thesis.txt" in shown.err and "target-cache/" in shown.err
    outcome = dspark("push", folder, "org/run", "--yes")
    assert outcome.code == 0, outcome.err
    assert uploaded("org/run") == WHOLE and all(name in outcome.err for name in WHOLE)


@pytest.mark.parametrize(
    "name", ["README.md", "calibration.json", "model.safetensors", "evaluations", "evaluations/x.json"]
)
def test_links_are_refused(hub, folder, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.json").write_text("private")
    path = folder / name
    if path.is_dir():
        path.rename(tmp_path / "moved")
    path.unlink(missing_ok=True)
    path.symlink_to(outside if name == "evaluations" else outside / "x.json")
    with pytest.raises(ValueError, match=f"{path} is a link, to {outside}.*Put the file itself there"):
        push_folder(folder, "org/run")
    assert not hub.repos


def test_a_link_is_told_before_a_run_starts(hub, make_trainer, tmp_path):
    trainer = make_trainer()
    (tmp_path / "outside").write_text("private")
    (tmp_path / "run" / "README.md").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="README.md is a link"):
        trainer.train()


def test_names_alone_decide(tmp_path):
    """No pattern reaches into other folders or fits hidden files."""
    for name in ("evaluations/a/b.json", "evaluations/.a.json", ".config.json", "sub/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    os.mkfifo(tmp_path / "training.json")
    (tmp_path / "calibration.json").mkdir()
    assert files_to_push(tmp_path) == [] and not any("**" in pattern for pattern in DRAFTER)


def answer_at_a_terminal(arguments, answer, environment):
    """Run `dspark` with a terminal as its standard input."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "dspark_hf", *arguments]
    process = subprocess.Popen(command, stdin=child, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    os.write(parent, f"{answer}\n".encode())
    out, err = process.communicate(timeout=600)
    os.close(parent)
    os.close(child)
    return process.returncode, out.decode(), err.decode()


def test_an_upload_is_asked_about(uploaded, hub, folder, tmp_path, dspark):
    refused = dspark("push", folder, "org/run")
    assert refused.code == 2 and "this is no terminal to ask at: add --yes" in refused.err and not hub.requests
    environment = os.environ | hub.environment(tmp_path / "home") | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = ["push", str(folder), "org/run", "--private"]
    code, _, err = answer_at_a_terminal(arguments, "n", environment)
    assert code == 2 and f"Uploads {folder} to org/run (a new repository, private)." in err
    assert "Nothing was uploaded." in err and not hub.repos
    code, out, err = answer_at_a_terminal(arguments, "y", environment)
    assert code == 0 and "/org/run/commit/" in out, err
    assert uploaded("org/run") == WHOLE
    assert "to org/run (private)" in dspark("push", folder, "org/run", "--yes").err


def test_a_drafters_subfolder_may_be_no_link(tiny_drafter_dir, tmp_path):
    folder, elsewhere = tmp_path / "both", tmp_path / "elsewhere"
    shutil.copytree(tiny_drafter_dir, elsewhere)
    folder.mkdir()
    (folder / "dspark").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="dspark is a link"):
        files_to_push(folder)


def test_only_shards_that_the_index_names_go(tiny_drafter_dir, tmp_path):
    folder = tmp_path / "drafter"
    shutil.copytree(tiny_drafter_dir, folder)
    (folder / "model-00001-of-00002.safetensors").write_text("notes of mine")
    assert "model-00001-of-00002.safetensors" not in files_to_push(folder)
    index = {"weight_map": {"fc.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors" in files_to_push(folder)


def test_what_lies_in_evaluations_goes_up_without_secrets(tiny_drafter_dir, tmp_path):
    folder, made = tmp_path / "drafter", tmp_path / "made"
    shutil.copytree(tiny_drafter_dir, folder)
    row = {"task": "chat", "way": "drafter", "temperature": 0, "tau": 2.0, "key": "hf_other"}
    made_with = {"command": "dspark evaluate --token hf_secretsecret", "host": "mine"}
    record = {"tau": 2.0, "data": "/home/me/x.jsonl", "note": "hf_noted", "rows": [row], "provenance": made_with}
    (folder / "evaluations").mkdir()
    (folder / "evaluations" / "chat.json").write_text(json.dumps(record))
    drafter, files = prepare(folder, CardFacts(), made)
    text = files["evaluations/chat.json"].read_text() + json.dumps(drafter.evaluations)
    assert not any(word in text for word in ("hf_", "/home/me", "mine")) and "x.jsonl" in text


def test_pictures_are_of_the_evaluations_that_go(uploaded, hub, folder, dspark):
    for name in ("acceptance.png", "reliability.png"):
        (folder / name).write_bytes(b"of an earlier push")
    push_folder(folder, "org/run")
    assert uploaded("org/run") == WHOLE and "reliability.png" not in WHOLE
    assert hub.files("org/run")["acceptance.png"].startswith(b"\x89PNG")
    # Also beside somebody's own words, and where there is nothing to draw.
    (folder / "README.md").write_text("Mine.")
    push_folder(folder, "org/words")
    assert hub.files("org/words")["acceptance.png"].startswith(b"\x89PNG")
    (folder / "evaluations" / "chat.json").unlink()
    push_folder(folder, "org/nothing")
    assert not [path for path in uploaded("org/nothing") if path.endswith(".png")]


@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["bytes", "large"])
def test_a_card_that_is_no_text(hub, folder, dspark, make_trainer, content, tiny_target_dir, tmp_path):
    card = folder / "README.md"
    if content is None:
        with open(card, "wb") as file:
            file.truncate(2**34)  # 16 GiB that take no place
    else:
        card.write_bytes(content)
    message = (
        "README.md .*(no text in UTF-8|more than 64 MiB).* Write it as UTF-8, or take it away: then a card is made"
    )
    with pytest.raises(ValueError, match=message):
        push_folder(folder, "org/run")
    with pytest.raises(ValueError, match=message):
        write_card(folder)
    outcome = dspark("push", folder, "org/run", "--yes")
    assert outcome.code == 2 and "Traceback" not in outcome.err and "README.md" in outcome.err
    with pytest.raises(ValueError, match=message):
        assemble(tmp_path / "both", str(tiny_target_dir), folder)
    with pytest.raises(ValueError, match=message):
        make_trainer(push_to_hub=False).train()


def test_a_card_on_the_hub_that_is_no_text(hub, folder, tmp_path, monkeypatch):
    push_folder(folder, "org/run")
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    monkeypatch.setattr(Repository, "fetch", lambda self, path: tmp_path / path)
    (folder / "README.md").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="The card on the Hub cannot be read.*no text in UTF-8.*--overwrite-card"):
        push_folder(folder, "org/run")


class Noting(TrainerCallback):
    """Writes a token into the state that checkpoints keep."""

    def on_step_end(self, args, state, control, **kwargs):
        state.log_history.append({"note": "sk-proj-abcdefghij0123456789", "step": state.global_step})


def test_a_checkpoint_with_a_secret_is_not_uploaded(hub, make_trainer, caplog):
    trainer = make_trainer(hub_strategy="checkpoint")
    trainer.add_callback(Noting())
    trainer.train()
    said = [record.getMessage() for record in caplog.records if "was not uploaded" in record.getMessage()]
    assert len(said) == 2 and "last-checkpoint/trainer_state.json (note" in said[0]


def test_a_secret_is_told_before_a_run_starts(hub, make_trainer, tmp_path):
    trainer = make_trainer()
    (tmp_path / "run" / "README.md").write_text(f"# Mine\n{WRITE_TOKEN}\n")
    with pytest.raises(ValueError, match=r"^README.md \(line 2\) holds the token in use"):
        trainer.train()


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_with_its_checkpoints(uploaded, hub, make_trainer):
    make_trainer(peft_config=LoraConfig(r=2, target_modules=["q_proj"]), hub_strategy="all_checkpoints").train()
    adapter = {"config.json", "adapter_config.json", "adapter_model.safetensors"}
    resumable = adapter | RESUMABLE - {"model.safetensors"}
    assert uploaded("org/run") == adapter | {"README.md", "training.json"} | {
        f"checkpoint-{step}/{name}" for step in (2, 4) for name in resumable
    }
