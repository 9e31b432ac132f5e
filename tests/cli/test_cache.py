"""`dspark cache`: sizes before work, a cache after it, and how it refuses."""

import json

import pytest
from transformers import LlamaForCausalLM

from dspark_hf import DFlashModel, Eagle3Model, TargetCache


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.jsonl"
    messages = [{"role": "user", "content": "Say something."}, {"role": "assistant", "content": "Something at last."}]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for _ in range(3)))
    return path


def test_estimate_needs_no_weights(dspark, data, tmp_path, tiny_target_dir, monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    options = ["--target", tiny_target_dir, "--data", data, "--out", tmp_path / "cache", "--tap", 0, "--tap", 2]
    outcome = dspark("cache", *options, "--estimate")
    assert outcome.code == 0, outcome.err
    assert "3 rows, 114 tokens" in outcome.out
    assert "bf16 │ 197 │ 22.5 kB │ 1.00x" in outcome.out and "int4 │ 87" in outcome.out
    assert not (tmp_path / "cache").exists()


def test_build_verify_and_push(hub, dspark, data, tmp_path, tiny_target_dir, tiny_drafter_dir):
    out = tmp_path / "cache"
    options = ["--target", tiny_target_dir, "--drafter", tiny_drafter_dir, "--data", data, "--out", out]
    outcome = dspark("cache", *options, "--dtype", "int8", "--log-norm", "--push-to-hub", "org/states", "--private")
    assert outcome.code == 0, outcome.err
    assert "3 rows, 114 tokens, int8," in outcome.out and "Uploaded: http" in outcome.out
    cache = TargetCache.from_hub("org/states")
    assert cache.manifest.target_layer_ids == [0, 2] and cache.manifest.log_norm and len(cache) == 3
    assert "3 rows, 114 tokens, int8" in dspark("cache", "--out", out, "--verify").out
    shard = next(out.glob("rows-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    outcome = dspark("cache", "--out", out, "--verify")
    assert outcome.code == 2 and shard.name in outcome.err.replace(" ", "")


@pytest.mark.parametrize(
    ("model_cls", "fields"),
    [(Eagle3Model, {"ttt_length": 3}), (DFlashModel, {"block_size": 3}), (DFlashModel, "nested")],
    ids=["eagle3", "dflash", "other packaging"],
)
def test_taps_of_any_drafter(dspark, data, tmp_path, tiny_target_dir, model_cls, fields):
    target = LlamaForCausalLM.from_pretrained(tiny_target_dir)
    nested = fields == "nested"
    fields = {"block_size": 3} if nested else fields
    model_cls.from_target(target, target_layer_ids=[1, 2], num_hidden_layers=1, **fields).save_pretrained(
        tmp_path / "drafter"
    )
    if nested:
        # As SpecForge and z-lab pack it.
        path = tmp_path / "drafter" / "config.json"
        config = json.loads(path.read_text())
        config["dflash_config"] = {name: config.pop(name) for name in ("target_layer_ids", "mask_token_id")}
        path.write_text(json.dumps(config))
    options = ["--target", tiny_target_dir, "--drafter", tmp_path / "drafter", "--data", data]
    outcome = dspark("cache", *options, "--out", tmp_path / "cache")
    assert outcome.code == 0, outcome.err
    assert TargetCache(tmp_path / "cache").manifest.target_layer_ids == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Say what to run the target on: --data FILE.jsonl"),
        (
            ["--data", "DATA", "--drafter", "d", "--tap", 1],
            "--drafter names the taps already; give either it or --tap",
        ),
        (["--data", "DATA", "--dtype", "int3"], "dtype must be one of fp32, fp16, bf16, fp8, int8, int4, got 'int3'"),
        (
            ["--data", "DATA", "--target-dtype", "int8"],
            "--target-dtype must be one of float32, bfloat16, float16, auto, got",
        ),
        (
            ["--data", "DATA", "--tap", 9],
            "target_layer_ids must be ascending ids from 0 to 2 for a target of 4 layers",
        ),
        (["--data", "nothing.jsonl"], "Cannot read conversations from 'nothing.jsonl'"),
        (["--verify"], "is no target cache: it has no manifest.json. Build one: `dspark cache`"),
    ],
)
def test_bad_options(dspark, data, tmp_path, tiny_target_dir, options, message):
    options = [data if option == "DATA" else option for option in options]
    outcome = dspark("cache", "--out", tmp_path / "cache", "--target", tiny_target_dir, *options)
    assert outcome.code == 2 and message in outcome.err
