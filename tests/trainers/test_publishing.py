"""Training leaves a card that tells how it was done, and pushes it."""

import json

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig

from dspark_hf import AutoDrafter


def test_the_card_tells_how_it_was_trained(hub, make_trainer, tmp_path, rows):
    trainer = make_trainer(tmp_path / "run", rows, learning_rate=2e-3, push_to_hub=True, hub_model_id="org/trained",
                           save_strategy="steps", save_steps=2)  # fmt: skip
    trainer.train()
    trainer.push_to_hub(license="mit", dataset_tags="org/chats", tags="chat", finetuned_from="org/Model")
    files = hub.files("org/trained")
    record = json.loads(files["training.json"])
    assert (record["steps"], record["sequences"], record["data"]) == (4, len(rows), ["org/chats"])
    assert record["arguments"]["learning_rate"] == 2e-3 and "output_dir" not in record["arguments"]
    assert str(tmp_path) not in json.dumps(record)
    data = ModelCard(files["README.md"].decode()).data
    assert (data.base_model, data.license, data.datasets) == ("org/Model", "mit", ["org/chats"])
    assert "chat" in data.tags and "| `steps` | 4 |" in files["README.md"].decode()
    assert AutoDrafter.from_pretrained("org/trained").config.block_size == 4


def test_a_card_of_ones_own_survives_training(make_trainer, tmp_path, rows):
    (tmp_path / "README.md").write_text("tau is 3")
    trainer = make_trainer(tmp_path, rows)
    trainer.save_model()
    trainer.create_model_card(dataset=["mine"])
    assert (tmp_path / "README.md").read_text() == "tau is 3"
    assert json.loads((tmp_path / "training.json").read_text())["data"] == ["mine"]


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_has_a_card_too(make_trainer, tmp_path, rows):
    trainer = make_trainer(tmp_path, rows, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    trainer.save_model()
    assert not (tmp_path / "README.md").exists()  # PEFT's template would be taken for somebody's own words
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert (
        "a LORA adapter of 128 parameters" in text and "vLLM cannot load this drafter: it reads whole drafters" in text
    )
    trainer.save_model()
    assert (tmp_path / "README.md").read_text() == text
