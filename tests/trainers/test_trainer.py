"""DraftTrainer on a tiny target: it learns, resumes bit for bit, and counts the global batch."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from dspark_hf import AutoDrafter, DraftTrainingArguments
from dspark_hf.data.cache.shards import row_bytes
from dspark_hf.data.features import TargetFeatures, hold_features
from dspark_hf.trainers.rows import encode_rows
from dspark_hf.trainers.streams import StreamedRows


@pytest.mark.parametrize("fields", [{}, {"draft_vocab_size": 80}], ids=str)
def test_overfits_one_batch(make_trainer, tmp_path, rows, fields, losses):
    # Few tokens and many steps: what remains is far below what it starts from.
    trainer = make_trainer(tmp_path, rows[:2], max_steps=400, learning_rate=1e-2, logging_steps=20,
                           per_device_train_batch_size=2, num_anchors=40, markov_rank=64,
                           confidence_weight=0.0, tv_weight=0.0, ce_weight=1.0)  # fmt: skip
    trainer.train()
    history = losses(trainer)
    assert history[-1] < history[0] / 10


def test_the_full_objective_falls_and_is_logged(make_trainer, tmp_path, rows):
    trainer = make_trainer(tmp_path, rows, max_steps=60, learning_rate=1e-2, logging_steps=30, eval_rows=rows)
    trainer.train()
    first, last = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert last["loss"] < first["loss"] and last["expected_tau"] > first["expected_tau"]
    metrics = trainer.evaluate()
    assert 0 < metrics["eval_expected_accept_slot_4"] <= 1 and 1 <= metrics["eval_expected_tau"] <= 5
    assert 0 <= metrics["eval_confidence_error"] <= 1


@pytest.mark.parametrize("optimizer", [{}, {"muon_learning_rate": 0.02}], ids=str)
def test_resume_is_bit_for_bit(make_trainer, tmp_path, rows, losses, optimizer):
    whole = make_trainer(tmp_path / "whole", rows, max_steps=10, **optimizer)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 6  # in the second epoch

    options = {"max_steps": 10, "save_strategy": "steps", "save_steps": 3, **optimizer}
    make_trainer(tmp_path / "part", rows, callbacks=[Stop()], **options).train()
    resumed = make_trainer(tmp_path / "part", rows, **options)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed)[-4:] == losses(whole)[-4:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_accumulation_equals_one_big_batch(make_trainer, tmp_path, rows, losses):
    big = make_trainer(tmp_path / "a", rows, per_device_train_batch_size=8)
    small = make_trainer(tmp_path / "b", rows, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    big.train()
    small.train()
    assert losses(small) == pytest.approx(losses(big), rel=1e-4)
    for name, tensor in big.model.state_dict().items():
        torch.testing.assert_close(small.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"draft_vocab_size": 60}], ids=str)
def test_held_features_equal_online_ones(make_trainer, target, tmp_path, rows, fields, losses):
    online = make_trainer(tmp_path / "a", rows, **fields)
    held = hold_features(TargetFeatures(target, online.model.config.target_layer_ids), rows,
                         log_norm=bool(fields), progress=False)  # fmt: skip
    assert held[0]["features"].shape == (len(rows[0]["input_ids"]), 32 * len(online.model.config.target_layer_ids))
    offline = make_trainer(tmp_path / "b", held, **fields)
    online.train()
    offline.train()
    assert losses(offline) == pytest.approx(losses(online), rel=1e-4)


def test_features_are_the_raw_layer_outputs(target, rows):
    ids = torch.tensor([rows[0]["input_ids"]])
    outputs = target(ids, output_hidden_states=True)
    features, last = TargetFeatures(target, [0, 2])(ids)
    assert torch.equal(features, torch.cat([outputs.hidden_states[1], outputs.hidden_states[3]], -1))
    torch.testing.assert_close(target.lm_head(last), outputs.logits)


def test_bf16_and_checkpoints(make_trainer, target, tmp_path, rows):
    trainer = make_trainer(tmp_path, rows, bf16=True, save_strategy="steps", save_steps=4)
    trainer.train()
    drafter = AutoDrafter.from_pretrained(tmp_path / "checkpoint-4")
    assert drafter.dtype == torch.float32  # the weights that are trained stay in full precision
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert not any(name.startswith(("target", "borrowed", "lm_head")) for name in saved)
    assert all(parameter.grad is None for parameter in target.parameters())


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_bf16_that_a_processor_emulates_is_told(make_trainer, tmp_path, rows, has_bfloat16, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bfloat16}, raising=False)
    make_trainer(tmp_path, rows, bf16=True)
    assert ("no instructions for bfloat16" in caplog.text) == (not has_bfloat16)
    caplog.clear()
    make_trainer(tmp_path, rows)
    assert "bfloat16" not in caplog.text


def test_conversations_need_a_tokenizer(make_trainer, tmp_path):
    conversation = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(ValueError, match="processing_class"):
        make_trainer(tmp_path, [conversation])


def test_the_end_of_a_cut_answer_is_not_learned(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bcd"}]
    rows = encode_rows([{"messages": messages}, {"messages": messages, "complete": False}], tokenizer, 64)
    whole, cut = (sum(row["loss_mask"]) for row in rows)
    assert rows[0]["input_ids"][:-1] == rows[1]["input_ids"] and cut == whole - 1


def test_conversations_of_any_shape_are_the_same_rows(tiny_tokenizer):
    said, answer = "what?", "that is so"
    plain = {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]}
    filled = {"messages": [{**message, "name": None} for message in plain["messages"]], "turns": None}
    shared = {"conversations": [{"from": "human", "value": said}, {"from": "gpt", "value": answer}]}
    paired = {"prompt": said, "completion": answer}
    given = [plain, filled, shared, paired]
    rows = encode_rows(given, tiny_tokenizer, 64)
    assert all(row == rows[0] for row in rows) and any(rows[0]["loss_mask"]) and len(rows) == 4
    assert list(StreamedRows(given, tiny_tokenizer, 64)) == rows
    assert row_bytes(shared) == row_bytes(plain)
    # Ids come first: a column of their prompts' text is none of ours.
    encoded = [{**rows[0], "prompt": said}]
    assert encode_rows(encoded, tiny_tokenizer, 64) is encoded and row_bytes(encoded[0]) == row_bytes(rows[0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tv_weight", -1.0),
        ("slot_decay", 0.0),
        ("num_anchors", 0),
        ("loss_chunk_size", 0),
        ("muon_learning_rate", 0.0),
    ],
)
def test_bad_arguments(tmp_path, field, value):
    with pytest.raises(ValueError, match=field):
        DraftTrainingArguments(str(tmp_path), **{field: value})


def test_gradient_checkpointing_saves_memory_and_changes_nothing(make_trainer, rows, tmp_path, losses):
    def saved_bytes(trainer):
        batch = trainer.data_collator(rows[:4])
        sizes = {}

        def pack(tensor):
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return sum(sizes.values())

    plain = make_trainer(tmp_path / "a", rows, num_hidden_layers=2)
    frugal = make_trainer(tmp_path / "b", rows, num_hidden_layers=2, activation_checkpointing=True)
    plain.train()
    frugal.train()
    assert losses(frugal) == losses(plain)
    assert saved_bytes(frugal) < saved_bytes(plain) / 2


def test_steps_through_the_kernel_are_those_of_torch(make_trainer, tmp_path, rows, losses, request, monkeypatch):
    def train():
        options = {"per_device_train_batch_size": 2, "num_anchors": 4, "max_steps": 2}
        trainer = make_trainer(tmp_path, rows, ce_weight=0.5, soft_ce_weight=0.2, **options)
        trainer.train()
        return trainer, losses(trainer)

    _, expected = train()
    request.getfixturevalue("kernels")
    monkeypatch.setattr("dspark_hf.ops.distill_loss.logit_gradient", None)
    trainer, found = train()
    assert len(found) == 2 and found == pytest.approx(expected, rel=1e-5)
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
