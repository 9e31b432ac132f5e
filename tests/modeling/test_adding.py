"""What CONTRIBUTING promises: an algorithm, a family, a head and a packaging are one file and one line each."""

import json

import pytest
import torch
from huggingface_hub.dataclasses import strict
from safetensors.torch import load_file, save_file
from small_target import make_target
from torch import nn
from transformers.models.mistral import modeling_mistral
from transformers.models.mistral.configuration_mistral import MistralConfig

from dspark_hf import AutoDrafter, DSparkConfig, DSparkModel
from dspark_hf.hub.packagings import PACKAGINGS, Packaging, write_packaging
from dspark_hf.modeling import ALGORITHMS
from dspark_hf.modeling.families import FAMILIES, Family
from dspark_hf.modeling.heads import SEQUENTIAL_HEADS, SequentialHead

FIELDS = {"target_layer_ids": [0, 2], "num_hidden_layers": 1, "block_size": 4, "markov_rank": 4}


class Mistral(Family):
    engine_name = "Mistral"
    config_cls = MistralConfig
    layer_cls = modeling_mistral.MistralDecoderLayer
    norm_cls = modeling_mistral.MistralRMSNorm
    rotary_cls = modeling_mistral.MistralRotaryEmbedding
    apply_rotary = staticmethod(modeling_mistral.apply_rotary_pos_emb)


@strict
class ColdConfig(DSparkConfig):
    """DSpark whose drafts are drawn from flatter logits."""

    model_type = "cold"
    coldness: float = 2.0

    @classmethod
    def describes(cls, flat):
        return "coldness" in flat


class ColdModel(DSparkModel):
    config_class = ColdConfig

    def base_logits(self, hidden):
        return super().base_logits(hidden) / self.config.coldness


class Zipped(Packaging):
    """Fields in a section of their own, and tensors under another name."""

    name = "zipped"

    def is_of(self, config, names):
        return "zip" in config

    def flat(self, config, names, where):
        return config["zip"]

    def rename(self, name):
        return name.removeprefix("zip.")

    def write(self, drafter, folder):
        drafter.save_pretrained(folder)
        config, weights = folder / "config.json", folder / "model.safetensors"
        config.write_text(json.dumps({"zip": json.loads(config.read_text())}))
        save_file({f"zip.{name}": tensor for name, tensor in load_file(weights).items()}, weights)


class Repeated(SequentialHead):
    """The same vector for every token."""

    def __init__(self, rank, num_outputs):
        super().__init__(rank, num_outputs)
        self.vector = nn.Parameter(torch.randn(rank))

    def step(self, previous, hidden, state):
        return self.vector.expand(*hidden.shape[:-1], -1), None


@pytest.fixture(scope="module")
def target():
    return make_target()


def assert_drafts(drafter, target, folder):
    """It generates the target's tokens, and comes back from a folder as it was."""
    ids = torch.randint(1, 60, (1, 8))
    expected = target.generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(target.generate(ids, max_new_tokens=10, do_sample=False, assistant_model=drafter), expected)
    other = AutoDrafter.from_pretrained(folder)
    assert type(other) is type(drafter)
    first, second = drafter.state_dict(), other.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_family(target, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "mistral", Mistral())
    drafter = DSparkModel.from_target(target, family="mistral", **FIELDS)
    drafter.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["MistralDSparkModel"]
    assert_drafts(drafter, target, tmp_path)


def test_an_algorithm(target, tmp_path, monkeypatch):
    others = dict(ALGORITHMS)
    ALGORITHMS.clear()
    ALGORITHMS.update({"cold": ColdModel, **others})
    try:
        drafter = ColdModel.from_target(target, coldness=3.0, **FIELDS)
        drafter.save_pretrained(tmp_path)
        assert_drafts(drafter, target, tmp_path)
        assert AutoDrafter.from_pretrained(tmp_path).config.coldness == 3
    finally:
        ALGORITHMS.clear()
        ALGORITHMS.update(others)


def test_a_head(target, tmp_path, monkeypatch):
    monkeypatch.setitem(SEQUENTIAL_HEADS, "rnn", lambda config, outputs: Repeated(config.markov_rank, outputs))
    fields = {"markov_head_type": "rnn", "confidence_head_with_markov": False}
    drafter = DSparkModel.from_target(target, **FIELDS, **fields)
    drafter.save_pretrained(tmp_path)
    assert_drafts(drafter, target, tmp_path)


def test_a_packaging(target, tmp_path, monkeypatch):
    monkeypatch.setattr("dspark_hf.hub.packagings.PACKAGINGS", [Zipped(), *PACKAGINGS])
    drafter = DSparkModel.from_target(target, **FIELDS)
    write_packaging(drafter, tmp_path, "zipped")
    assert_drafts(drafter, target, tmp_path)
    assert all(name.startswith("zip.") for name in load_file(tmp_path / "model.safetensors"))
