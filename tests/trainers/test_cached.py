"""Where the target's states come from does not change what is learned."""

import copy

import pytest
import torch

from dspark_hf import DraftTrainer, DraftTrainingArguments, DSparkModel, build_target_cache

TAPS = [0, 2]


@pytest.fixture
def train(target, tmp_path, losses):
    """`train(target, rows, fields, **arguments)`: the trainer of a fresh drafter, after four steps."""

    def run(target, rows, fields=None, eval_rows=None, **arguments):
        torch.manual_seed(2)
        shape = {"num_hidden_layers": 1, "block_size": 4, "markov_rank": 8, "num_anchors": 8, "target_layer_ids": TAPS}
        drafter = DSparkModel.from_target(target, **shape, **(fields or {})).float()
        defaults = {"output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 1, "disable_tqdm": True,
                    "gradient_accumulation_steps": 4, "report_to": "none", "logging_steps": 1, "max_steps": 4,
                    "save_strategy": "no", "seed": 5, "num_eval_prompts": 0}  # fmt: skip
        arguments = DraftTrainingArguments(**{**defaults, **arguments})
        trainer = DraftTrainer(drafter, target, arguments, train_dataset=rows, eval_dataset=eval_rows)
        trainer.train()
        return trainer

    return run


@pytest.mark.parametrize(
    ("dtype", "fields", "mixed"),
    [("fp32", {}, False), ("fp32", {"draft_vocab_size": 60}, False), ("bf16", {}, True)],
    ids=["float32", "reduced vocabulary", "bfloat16 and autocast"],
)
def test_cached_and_online_give_the_same_loss(train, losses, target, rows, tmp_path, dtype, fields, mixed):
    target = copy.deepcopy(target).to(torch.float32 if dtype == "fp32" else torch.bfloat16)
    # One row per forward pass, as in training: batches of other shapes round otherwise.
    cache = build_target_cache(target, rows, tmp_path / "cache", target_layer_ids=TAPS, dtype=dtype,
                               batch_tokens=1, log_norm=bool(fields), progress=False)  # fmt: skip
    online = losses(train(target, rows, fields, bf16=mixed))
    assert losses(train(target, cache, fields, bf16=mixed)) == pytest.approx(online, rel=1e-5)


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "int8", "int4"])
def test_smaller_caches_are_nearly_the_same(train, losses, target, rows, tmp_path, dtype):
    cache = build_target_cache(target, rows, tmp_path / "cache", target_layer_ids=TAPS, dtype=dtype, progress=False)
    online = losses(train(target, rows))
    assert losses(train(target, cache)) == pytest.approx(online, rel=0.05 if dtype == "int4" else 0.02)


def test_a_cache_is_evaluated_and_decoded_from(train, target, rows, tmp_path):
    cache = build_target_cache(target, rows, tmp_path / "cache", target_layer_ids=TAPS, progress=False)
    trainer = train(target, cache.select(range(12)), eval_rows=cache.select(range(12, 16)),
                    num_eval_prompts=2, eval_max_new_tokens=8)  # fmt: skip
    metrics = trainer.evaluate()
    assert 1 <= metrics["eval_expected_tau"] <= 5 and 1 <= metrics["eval_tau"] <= 5


def test_a_rolling_cache_gives_the_same_loss_with_fewer_runs(train, losses, target, rows, tmp_path):
    online = losses(train(target, rows, max_steps=12))
    trainer = train(target, rows, max_steps=12, cache_budget="60kB", cache_dtype="fp32")
    assert losses(trainer) == pytest.approx(online, rel=1e-5)
    features = trainer.features
    # Three epochs of 16 rows: what was kept in the first was found in the others.
    assert features.num_hits + features.num_misses == 48 and 0 < features.num_hits < 32
    assert features.num_hits % 2 == 0 and features.used <= 60_000
    assert (tmp_path / "out" / "target-cache" / "manifest.json").exists()


def test_a_cache_of_another_drafter_or_target_is_refused(train, target, rows, tmp_path):
    cache = build_target_cache(target, rows[:2], tmp_path / "cache", target_layer_ids=[1], progress=False)
    with pytest.raises(ValueError, match=r"made with taps \[1\].* reads \[0, 2\]"):
        train(target, cache)
    with pytest.raises(ValueError, match=r"made with taps \[1\].* reads \[0, 2\]"):
        train(target, rows, eval_rows={"held-out": cache})


def test_a_budget_beside_a_cache_is_refused(train, target, rows, tmp_path):
    cache = build_target_cache(target, rows[:2], tmp_path / "cache", target_layer_ids=TAPS, progress=False)
    with pytest.raises(ValueError, match="come from a TargetCache already; leave cache_budget out"):
        train(target, cache, cache_budget="1GB")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache_budget": "much"}, "Expected a size such as 50GB"),
        ({"cache_dtype": "int5"}, "dtype must be one of"),
        ({"cache_dir": "there"}, "cache_dir='there' has no cache_budget"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        DraftTrainingArguments(str(tmp_path), **arguments)
