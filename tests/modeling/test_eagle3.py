"""Eagle3Model against its formulas; training and decoding are one computation."""

import pytest
import torch
from naive_drafters import naive_eagle3, rms_norm
from safetensors.torch import load_file
from small_target import VOCAB, make_target

from dspark_hf import AutoDrafter, Eagle3Config, Eagle3Model


def make_drafter(target, **fields):
    torch.manual_seed(1)
    drafter = Eagle3Model.from_target(target, **{"num_taps": 3, "ttt_length": 4, "initializer_range": 0.3, **fields})
    for name, parameter in drafter.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return drafter.eval()


@pytest.fixture(scope="module")
def target():
    return make_target()


VARIANTS = [
    {"family": "qwen3"},
    {"family": "llama", "norm_before_residual": True},
    {"norm_before_fc": True},
    {"draft_vocab_size": 20},
    {"attn_implementation": "eager"},
]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_formulas(target, fields):
    fields = dict(fields)
    implementation = fields.pop("attn_implementation", "sdpa")
    drafter = make_drafter(target, **fields)
    drafter.set_attn_implementation(implementation)
    drafter.config.decoder_config._attn_implementation = implementation
    ids, features = torch.randint(VOCAB, (2, 12)), torch.randn(2, 12, 96)
    anchors = torch.tensor([[5, 2], [1, 7]])
    output = drafter(ids, features, anchors, torch.ones(2, 2, dtype=torch.bool))
    eps = drafter.config.decoder_config.rms_norm_eps
    for row in range(2):
        for index, anchor in enumerate(anchors[row].tolist()):
            expected = naive_eagle3(drafter, ids[row], features[row], anchor, num_steps=4)
            expected = rms_norm(expected, drafter.norm.weight, eps)
            torch.testing.assert_close(output.hidden[row, index], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fields", VARIANTS[:4], ids=str)
def test_training_and_decoding_agree(target, fields):
    drafter = make_drafter(target, **fields)
    features, anchor = torch.randn(2, 12, 96), 6
    ids, seen = torch.randint(VOCAB, (2, 12)), []

    def pick(logits, token_ids, drafted_ids):
        seen.append(logits)
        return logits.argmax(-1), None

    state = drafter.start(2)
    for start, end in ((0, 1), (1, 4), (4, anchor)):
        drafter.extend(state, features[:, start:end], ids=ids[:, start:end])
    proposal = drafter.propose(state, ids[:, anchor], pick)
    again = drafter.propose(state, ids[:, anchor])
    assert torch.equal(proposal.ids, again.ids)  # drafting leaves the context as it was
    ids[:, anchor + 1 : anchor + 5] = proposal.ids
    output = drafter(ids, features, torch.full((2, 1), anchor), torch.ones(2, 1, dtype=torch.bool))
    drafted = torch.stack(seen, 1)
    torch.testing.assert_close(drafted, drafter.base_logits(output.hidden)[:, 0], rtol=1e-4, atol=1e-4)


def test_rows_of_different_length_equal_single_rows(target):
    drafter = make_drafter(target)
    features, ids, anchors = torch.randn(3, 8, 96), torch.randint(VOCAB, (3, 8)), torch.tensor([1, 2, 3])
    more, more_ids = torch.randn(3, 4, 96), torch.randint(VOCAB, (3, 4))
    counts, kept = [8, 1, 5], [1, 4, 0]
    state = drafter.start(3)
    drafter.extend(state, features, counts, ids)
    drafter.extend(state, more, kept, more_ids)
    together = drafter.propose(state, anchors).ids
    for row in range(3):
        single = drafter.start(1)
        context = torch.cat([features[row, : counts[row]], more[row, : kept[row]]]).unsqueeze(0)
        tokens = torch.cat([ids[row, : counts[row]], more_ids[row, : kept[row]]]).unsqueeze(0)
        drafter.extend(single, context, ids=tokens)
        assert torch.equal(together[row], drafter.propose(single, anchors[row : row + 1]).ids[0])
    state.select([2, 0])
    assert torch.equal(drafter.propose(state, anchors[[2, 0]], num_slots=3).ids, together[[2, 0], :3])


def test_gradient_checkpointing_changes_nothing(target):
    drafter = make_drafter(target)
    batch = (torch.randint(VOCAB, (2, 12)), torch.randn(2, 12, 96), torch.tensor([[3, 6], [2, 4]]), torch.ones(2, 2))
    gradients = []
    for checkpointing in (False, True):
        drafter.zero_grad()
        if checkpointing:
            drafter.activation_checkpointing_enable()
        drafter.train()(*batch).hidden.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in drafter.parameters()])
    assert all(torch.allclose(*pair, rtol=1e-5, atol=1e-6) for pair in zip(*gradients, strict=True))


def test_own_output_head_is_kept(target, tmp_path):
    drafter = make_drafter(target, own_lm_head=True, draft_vocab_size=20)
    own = drafter.lm_head.weight.clone()
    assert drafter.head.weight is drafter.lm_head.weight and not torch.equal(own, target.lm_head.weight[:20])
    drafter.save_pretrained(tmp_path)
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
    again = AutoDrafter.from_pretrained(tmp_path).bind(target)
    assert torch.equal(again.head.weight, own)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ttt_length": 0}, "ttt_length must be >= 1"),
        ({"step_loss_decay": 1.5}, "step_loss_decay above 0"),
        ({"num_hidden_layers": 2}, "one layer, got num_hidden_layers=2"),
        ({"num_anchors": 0}, "num_anchors must be >= 1"),
    ],
)
def test_bad_fields(target, fields, message):
    with pytest.raises(ValueError, match=message):
        Eagle3Config.from_target(target, **fields)


def test_tokens_are_needed(target):
    drafter = make_drafter(target)
    with pytest.raises(ValueError, match="pass ids to extend"):
        drafter.extend(drafter.start(1), torch.randn(1, 3, 96))
