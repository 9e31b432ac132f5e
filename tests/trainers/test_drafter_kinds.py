"""One trainer for every kind of drafter: loss, overfitting, resuming, and generation with what was trained."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from dspark_hf import AutoDrafter, DFlashModel, DSparkModel, Eagle3Model
from dspark_hf.ops.blocks import block_targets

KINDS = {
    "dflash": (DFlashModel, {"num_hidden_layers": 1, "block_size": 4}),
    "dflash-mask-slots": (DFlashModel, {"num_hidden_layers": 1, "block_size": 5, "sample_from_anchor": False}),
    "eagle3": (Eagle3Model, {"ttt_length": 4}),
    "eagle3-reduced": (Eagle3Model, {"ttt_length": 4, "draft_vocab_size": 80}),
}


@pytest.fixture
def make_drafter(target):
    def make(kind):
        torch.manual_seed(2)
        model_cls, fields = KINDS[kind]
        return model_cls.from_target(target, num_anchors=8, **fields)

    return make


@pytest.mark.parametrize("kind", ["dflash", "eagle3", "eagle3-reduced"])
def test_loss(make_trainer, make_drafter, target, tmp_path, rows, losses, kind):
    """DFlash: cross-entropy, slots weigh exp(-(k - 1) / 4). EAGLE-3: to the target's distribution, and 0.8^(k - 1)."""
    drafter = make_drafter(kind)
    trainer = make_trainer(tmp_path, rows[:4], drafter=drafter, max_steps=1, seed=5)
    batch = trainer.data_collator(rows[:4])
    features, _ = trainer.features(batch["input_ids"], batch["attention_mask"])
    places = [batch[name] for name in ("input_ids", "loss_mask", "anchors", "anchor_mask")]
    target_ids, source, mask = block_targets(*places, 4)
    with torch.no_grad():
        logits = drafter.base_logits(drafter(places[0], features, places[2], places[3]).hidden)
        true = target(places[0], attention_mask=batch["attention_mask"]).logits
    decay = torch.tensor(-0.25).exp() if kind == "dflash" else 0.8
    weights = (decay ** torch.arange(4)).expand_as(mask) * mask
    aims = target_ids
    if kind != "dflash":
        # The draft vocabulary, where it is reduced, is the first tokens'.
        true = true[torch.arange(4)[:, None, None], source][..., : logits.shape[-1]]
        aims = true.softmax(-1).permute(0, 3, 1, 2)
    known = target_ids < logits.shape[-1]
    assert known.all() == (kind != "eagle3-reduced")
    expected = (weights * known * F.cross_entropy(logits.permute(0, 3, 1, 2), aims, reduction="none")).sum()
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(float(expected / weights.sum()), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_overfits_and_generates(make_trainer, make_drafter, target, tmp_path, rows, losses, kind):
    # This target is nearly undecided everywhere: its tokens can be learned by heart, its distribution has no low loss.
    trainer = make_trainer(tmp_path, rows[:3], drafter=make_drafter(kind), max_steps=120, learning_rate=1e-2,
                           logging_steps=20, per_device_train_batch_size=3, num_anchors=40,
                           ce_weight=1.0, soft_ce_weight=0.0)  # fmt: skip
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] / 4
    trainer.save_model(tmp_path / "saved")
    drafter = AutoDrafter.from_pretrained(tmp_path / "saved")
    assert type(drafter) is KINDS[kind][0]
    prompt = torch.tensor([row["input_ids"][:6] for row in rows[:3]])
    kwargs = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    plain = target.generate(prompt, **kwargs)
    assert torch.equal(target.generate(prompt, **kwargs, assistant_model=drafter), plain)
    assert drafter.last_stats.tau > 2


@pytest.mark.parametrize("kind", ["dflash-mask-slots", "eagle3"])
def test_resume_is_bit_for_bit(make_trainer, make_drafter, tmp_path, rows, losses, kind):
    whole = make_trainer(tmp_path / "whole", rows, drafter=make_drafter(kind), max_steps=5)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path / "part", rows, drafter=make_drafter(kind), callbacks=[Stop()], **options).train()
    resumed = make_trainer(tmp_path / "part", rows, drafter=make_drafter(kind), **options)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed)[-3:] == losses(whole)[-3:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_accumulation_equals_one_big_batch(make_trainer, make_drafter, tmp_path, rows, losses):
    big = make_trainer(tmp_path / "a", rows, drafter=make_drafter("eagle3"), per_device_train_batch_size=8)
    small = make_trainer(tmp_path / "b", rows, drafter=make_drafter("eagle3"), per_device_train_batch_size=2,
                         gradient_accumulation_steps=4)  # fmt: skip
    big.train()
    small.train()
    assert losses(small) == pytest.approx(losses(big), rel=1e-4)


def test_arguments_come_before_the_kind(make_trainer, make_drafter, tmp_path, rows):
    trainer = make_trainer(tmp_path, rows, drafter=make_drafter("eagle3"), tv_weight=0.5, slot_decay=2.0)
    weights = trainer.loss_weights
    assert (weights.soft_ce_weight, weights.ce_weight) == (1.0, 0.0)
    assert (weights.tv_weight, weights.slot_decay) == (0.5, 2.0)


def test_paper_weights_of_dspark(make_trainer, target, tmp_path, rows):
    weights = make_trainer(tmp_path, rows, drafter=DSparkModel.from_target(target)).loss_weights
    assert (weights.ce_weight, weights.tv_weight, weights.confidence_weight, weights.slot_decay) == (0.1, 0.9, 1, 4)


def test_a_head_of_the_drafters_own_learns(make_trainer, target, tmp_path, rows, losses):
    torch.manual_seed(2)
    fields = {"own_lm_head": True, "own_embed_tokens": True, "draft_vocab_size": 80, "ttt_length": 4}
    drafter = Eagle3Model.from_target(target, num_anchors=8, **fields)
    head, embedding = (getattr(drafter, name).weight.detach().clone() for name in ("lm_head", "embed_tokens"))
    before = target.lm_head.weight.detach().clone()
    trainer = make_trainer(tmp_path, rows[:3], drafter=drafter, max_steps=60, learning_rate=1e-2, num_anchors=40,
                           per_device_train_batch_size=3, logging_steps=20,
                           ce_weight=1.0, soft_ce_weight=0.0)  # fmt: skip
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] / 2
    assert not torch.equal(drafter.lm_head.weight, head) and not torch.equal(drafter.embed_tokens.weight, embedding)
    assert torch.equal(target.lm_head.weight, before)
    trainer.save_model(tmp_path / "saved")
    again = AutoDrafter.from_pretrained(tmp_path / "saved").bind(target)
    assert torch.equal(again.lm_head.weight, drafter.lm_head.weight)
    assert torch.equal(again.embed_tokens.weight, drafter.embed_tokens.weight)


SHAPED = {
    "gemma2": {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8, "head_dim": 8},
    "granite": {"logits_scaling": 0.25},
    "cohere": {"logit_scale": 0.3},
    "hyperclovax": {"logits_scaling": 0.3},
    "falcon_h1": {"lm_head_multiplier": 0.3, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8,
                  "mamba_d_state": 8, "mamba_n_groups": 1, "head_dim": 8},
    "phi": {}, "gptj": {"rotary_dim": 4}, "codegen": {"rotary_dim": 4},  # whose heads have a bias
}  # fmt: skip


def logits_of(trainer, drafter, target, rows):
    """What drafter and target say in four rows' slots, `(4, anchors, slots, vocab)` each, and which slots count."""
    batch = trainer.data_collator(rows)
    features, _ = trainer.features(batch["input_ids"], batch["attention_mask"])
    places = [batch[name] for name in ("input_ids", "loss_mask", "anchors", "anchor_mask")]
    _, source, mask = block_targets(*places, 4)
    with torch.no_grad():
        output = drafter(places[0], features, places[2], places[3])
        draft = drafter.base_logits(output.hidden) + drafter.markov_head.markov_w2(output.markov_states)
        logits = target(places[0], attention_mask=batch["attention_mask"]).logits
    return draft, logits[torch.arange(4)[:, None, None], source], mask


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        *((model_type, {}) for model_type in SHAPED),
        ("granite", {"draft_vocab_size": 80}),
        ("phi", {"draft_vocab_size": 80}),
        ("phi", {"own_lm_head": True, "draft_vocab_size": 80}),
        ("gemma2", {"own_lm_head": True}),
        ("cohere", {"own_lm_head": True, "draft_vocab_size": 80}),
    ],
)
def test_targets_that_do_more_to_their_logits(make_trainer, tmp_path, rows, model_type, fields):
    """What the loss takes for the two distributions is the target's, and what the drafter proposes."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        **SHAPED[model_type],
    )  # fmt: skip
    target = AutoModelForCausalLM.from_config(config).eval()
    bias = getattr(target.get_output_embeddings(), "bias", None)
    if bias is not None:
        bias.data.normal_(0, 3)
    torch.manual_seed(3)
    drafter = DSparkModel.from_target(
        target, num_hidden_layers=1, block_size=4, markov_rank=8, num_anchors=8, **fields
    )
    trainer = make_trainer(tmp_path, rows[:4], drafter=drafter, target=target, max_steps=1,
                           ce_weight=0.0, tv_weight=1.0, confidence_weight=0.0, slot_decay=1e6)  # fmt: skip
    draft, true, mask = logits_of(trainer, drafter, target, rows[:4])
    # A reduced vocabulary holds the first tokens here.
    probs = F.pad(draft.softmax(-1), (0, 97 - draft.shape[-1]))
    l1 = (probs - true.softmax(-1)).abs().sum(-1)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert logged == pytest.approx(float(l1[mask].mean()), rel=1e-4)


def test_a_target_whose_logits_are_made_otherwise_is_refused(make_trainer, target, tmp_path, rows):
    class Shifting(torch.nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden).roll(1, -1)

    other = copy.deepcopy(target)
    other.lm_head.__class__ = Shifting
    with pytest.raises(ValueError, match="logits of LlamaForCausalLM are not what its output head makes"):
        make_trainer(tmp_path, rows, target=other).train()


@pytest.mark.parametrize("fields", [{}, {"draft_vocab_size": 80}])
def test_a_target_with_added_tokens(make_trainer, target, tmp_path, rows, fields):
    """Those that the drafter does not know are distance: the loss over the whole vocabulary says the same."""
    torch.manual_seed(3)
    drafter = DSparkModel.from_target(target, num_hidden_layers=1, block_size=4, num_anchors=8, **fields)
    larger = copy.deepcopy(target)
    larger.resize_token_embeddings(105, mean_resizing=False)
    rows = [{**row, "input_ids": [*row["input_ids"][:10], 99, *row["input_ids"][11:]]} for row in rows[:4]]
    trainer = make_trainer(tmp_path, rows, drafter=drafter, target=larger, max_steps=1,
                           ce_weight=0.0, tv_weight=1.0, confidence_weight=0.0, slot_decay=1e6)  # fmt: skip
    draft, true, mask = logits_of(trainer, drafter, larger, rows)
    probs = F.pad(draft.softmax(-1), (0, 105 - draft.shape[-1]))
    l1 = (probs - true.softmax(-1)).abs().sum(-1)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert logged == pytest.approx(float(l1[mask].mean()), rel=1e-4)


def test_the_target_is_left_as_it_was(make_trainer, target, tmp_path, rows):
    target = copy.deepcopy(target)
    target.model.layers[0].requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in target.named_parameters()}
    weights = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    trainer = make_trainer(tmp_path, rows, target=target)
    trainer.train()
    assert {name: parameter.requires_grad for name, parameter in target.named_parameters()} == before
    assert all(parameter.grad is None for parameter in target.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize(("kind", "length"), [("dspark", 4), *((kind, 1) for kind in ("dspark", *KINDS))])
def test_batches_without_anchors_pass(make_trainer, make_drafter, tmp_path, rows, losses, kind, length):
    """They change no weight, and a run that is resumed behind one goes on as it was."""
    barren = {"input_ids": [5] * length, "loss_mask": [False] * (length - 1) + [True]}
    data = [rows[0], barren, rows[1], barren]

    def train(folder, steps, resume=None):
        drafter = None if kind == "dspark" else make_drafter(kind)
        trainer = make_trainer(folder, data, drafter=drafter, max_steps=steps, per_device_train_batch_size=1,
                               save_strategy="steps", save_steps=2, lr_scheduler_type="constant",
                               eval_rows=data[:2], per_device_eval_batch_size=1)  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = train(tmp_path / "whole", 4)
    logged = losses(whole)
    assert logged.count(0.0) == 2 and all(loss == loss for loss in logged)
    assert whole.evaluate()["eval_cross_entropy"] > 0
    train(tmp_path / "parts", 2)
    parts = train(tmp_path / "parts", 4, str(tmp_path / "parts" / "checkpoint-2"))
    for ours, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    alone = make_trainer(tmp_path / "alone", [barren], eval_rows=[barren], per_device_train_batch_size=1, max_steps=1)
    before = {name: tensor.clone() for name, tensor in alone.model.state_dict().items()}
    alone.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in alone.model.state_dict().items())
    assert "eval_cross_entropy" not in alone.evaluate()
