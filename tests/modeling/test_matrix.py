"""What every drafter does, whatever its algorithm and its family (see `tests/matrix.py`)."""

import copy
import json
import pickle

import pytest
import torch
from generation.tiny_targets import make_prompt, padded_prompts
from matrix import make_pair, pairs
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from dspark_hf import AutoDrafter
from dspark_hf.publishing.engines import Checkpoint, not_served
from dspark_hf.trainers.objective import DistillObjective

BATCH, LENGTH, VOCAB = 2, 12, 64


@pytest.fixture(scope="module", params=list(pairs()), ids="-".join)
def pair(request):
    return make_pair(*request.param)


def draft(drafter, rows=BATCH, pieces=(LENGTH,), num_slots=None, dtype=torch.float32):
    """A proposal of the first rows, after a context that was taken in by pieces."""
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(BATCH, LENGTH, drafter.fc.in_features, generator=generator).to(dtype)[:rows]
    ids = torch.randint(1, VOCAB, (BATCH, LENGTH + 1), generator=generator)[:rows]
    state, start = drafter.start(rows), 0
    for piece in pieces:
        part = slice(start, start + piece)
        drafter.extend(state, features[:, part], ids=ids[:, part])
        start += piece
    return drafter.propose(state, ids[:, -1], num_slots=num_slots)


def loss_of(drafter):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, VOCAB, (BATCH, LENGTH), generator=generator)
    weights = drafter.config.loss_weights
    anchors, mask = torch.tensor([[1, 5], [0, 4]]), torch.ones(BATCH, 2, dtype=torch.bool)
    objective = DistillObjective(
        ids, torch.ones(BATCH, LENGTH, dtype=torch.bool), anchors, mask,
        torch.randn(BATCH, LENGTH, drafter.config.hidden_size, generator=generator), weights.ce_weight,
        weights.tv_weight, weights.confidence_weight, weights.slot_decay, 64, weights.soft_ce_weight,
    )  # fmt: skip
    features = torch.randn(BATCH, LENGTH, drafter.fc.in_features, generator=generator)
    return drafter(ids, features, anchors, mask, objective)


def gradients(drafter):
    drafter.zero_grad()
    loss_of(drafter).backward()
    return {name: parameter.grad for name, parameter in drafter.named_parameters() if parameter.requires_grad}


def test_forward(pair):
    loss = loss_of(pair[0])
    assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite() and loss > 0


def test_every_parameter_learns(pair):
    without = {name for name, gradient in gradients(pair[0]).items() if gradient is None or not gradient.any()}
    assert without == set()


def test_checkpointed_gradients(pair):
    expected = {name: gradient.clone() for name, gradient in gradients(pair[0]).items()}
    drafter = copy.deepcopy(pair[0]).train()
    drafter.activation_checkpointing_enable()
    for name, gradient in gradients(drafter).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_a_context_in_pieces(pair):
    assert torch.equal(draft(pair[0]).ids, draft(pair[0], pieces=(5, 1, 6)).ids)


def test_rows_are_independent(pair):
    """A row of a batch is drafted as it is alone."""
    assert torch.equal(draft(pair[0]).ids[:1], draft(pair[0], rows=1).ids)


def test_blocks_do_not_see_each_other_or_the_future(pair):
    drafter, generator = pair[0], torch.Generator().manual_seed(4)
    ids = torch.randint(VOCAB, (1, LENGTH), generator=generator)
    features = torch.randn(1, LENGTH, drafter.fc.in_features, generator=generator)
    anchors, keep = torch.tensor([[3, 6]]), torch.ones(1, 2, dtype=torch.bool)
    output = drafter(ids, features, anchors, keep).hidden
    changed = features.clone()
    changed[:, 6:] += 1
    torch.testing.assert_close(drafter(ids, changed, anchors, keep).hidden, output)
    alone = drafter(ids, features, anchors[:, :1], keep[:, :1]).hidden
    torch.testing.assert_close(alone[:, 0], output[:, 0], rtol=1e-4, atol=1e-4)
    changed[:, 5] += 1
    assert not torch.allclose(drafter(ids, changed, anchors, keep).hidden[:, 1], output[:, 1])


def test_fewer_slots_are_the_first(pair):
    """Block inputs do not change with how many slots are asked for."""
    whole = draft(pair[0]).ids
    assert whole.shape == (BATCH, pair[0].config.num_slots)
    assert torch.equal(draft(pair[0], num_slots=2).ids, whole[:, :2])


def test_saved_and_loaded(pair, tmp_path):
    pair[0].save_pretrained(tmp_path)
    other = AutoDrafter.from_pretrained(tmp_path).bind(pair[1])
    first, second = pair[0].state_dict(), other.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert not {"embed_tokens.weight", "lm_head.weight"} & load_file(tmp_path / "model.safetensors").keys()
    other.save_pretrained(tmp_path / "again")
    texts = [(folder / "config.json").read_text() for folder in (tmp_path, tmp_path / "again")]
    assert texts[0] == texts[1]
    assert torch.equal(draft(other).ids, draft(pair[0]).ids)


def test_auto_classes(pair, tmp_path):
    pair[0].save_pretrained(tmp_path)
    assert type(AutoDrafter.from_pretrained(tmp_path)) is type(pair[0])
    # Where shapes differ from an ordinary model's, transformers is the first to see it.
    with pytest.raises((ValueError, RuntimeError), match="AutoDrafter.from_pretrained|ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == pair[0].config.decoder_config.model_type
    for told in not_served(Checkpoint.read(tmp_path)):
        assert "shape" not in told and "lacks" not in told


def test_bfloat16(pair, tmp_path):
    pair[0].save_pretrained(tmp_path / "float32")
    # Some families keep some weights in float32.
    drafter = AutoDrafter.from_pretrained(tmp_path / "float32", dtype="bfloat16").bind(pair[1])
    assert all(buffer.dtype == torch.float32 for buffer in drafter.rotary_emb.buffers())
    drafter.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    other = AutoDrafter.from_pretrained(tmp_path).bind(pair[1])
    assert other.fc.weight.dtype == torch.bfloat16
    assert torch.equal(draft(other, dtype=torch.bfloat16).ids, draft(drafter, dtype=torch.bfloat16).ids)


def test_copies(pair):
    for other in (copy.deepcopy(pair[0]), pickle.loads(pickle.dumps(pair[0])).bind(pair[1])):
        assert torch.equal(draft(other).ids, draft(pair[0]).ids)


def test_generate_is_the_targets(pair):
    drafter, target = pair
    ids = make_prompt(9)
    expected = target.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(target.generate(ids, max_new_tokens=12, do_sample=False, assistant_model=drafter), expected)
    assert drafter.last_stats.rounds > 0


def test_generate_in_a_batch(pair):
    drafter, target = pair
    # DeepSeek-V4 counts windows by cache column.
    same = target.config.model_type == "deepseek_v4"
    ids, mask = padded_prompts([7, 7] if same else [9, 4])
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    expected = target.generate(ids, **options)
    assert torch.equal(target.generate(ids, **options, assistant_model=drafter), expected)
