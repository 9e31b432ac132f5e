"""A tiny target and its drafter, adapter, cache and checkpoint, to be broken one field at a time."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from dspark_hf import AutoDrafter, DSparkModel, build_target_cache
from dspark_hf.data.cache.records import read_record, write_record

TAPS = [1, 2]


@pytest.fixture(scope="package")
def target():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=4,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512,
                         eos_token_id=None)  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="package")
def rows():
    return [{"input_ids": list(range(start, start + 20)), "loss_mask": [True] * 20} for start in range(16)]


@pytest.fixture(scope="package")
def whole(tmp_path_factory, target, rows):
    """Folder with a whole `drafter`, `adapter` and `cache`."""
    folder = tmp_path_factory.mktemp("whole")
    drafter = DSparkModel.from_target(target, num_hidden_layers=1, target_layer_ids=TAPS, block_size=4, markov_rank=4)
    drafter.save_pretrained(folder / "drafter")
    loaded = AutoDrafter.from_pretrained(folder / "drafter")
    get_peft_model(loaded, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder / "adapter")
    build_target_cache(target, rows, folder / "cache", target_layer_ids=TAPS, dtype="fp32", progress=False)
    return folder


@pytest.fixture
def edited(whole, tmp_path):
    """`edited(name, file, change)`: a copy of a folder whose JSON file has other fields, checksums right."""

    def edit(name: str, file: str, change: dict | str | bytes) -> Path:
        folder = tmp_path / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole / name, folder)
        path = next(folder.glob(file), folder / file)
        if isinstance(change, (str, bytes)):
            path.write_bytes(change.encode() if isinstance(change, str) else change)
        elif name == "cache":
            write_record(path, read_record(path) | change)
        else:
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        return folder

    return edit
