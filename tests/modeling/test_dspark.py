"""DSparkModel: context, proposals, reduced vocabulary, borrowing, saving."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from small_target import VOCAB, make_target
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from dspark_hf import AutoDrafter, DSparkModel, SpeculationConfig


def make_drafter(target, **fields):
    torch.manual_seed(1)
    defaults = dict(num_hidden_layers=2, block_size=4, markov_rank=8, num_taps=3, initializer_range=0.3)
    return DSparkModel.from_target(target, **{**defaults, **fields}).eval()


@pytest.fixture(scope="module")
def target():
    return make_target()


HEADS = [
    {"family": "qwen3"},
    {"markov_head_type": "gated"},
    {"markov_head_type": "rnn"},
    {"markov_rank": 0, "enable_confidence_head": False},
    {"confidence_head_with_markov": False},
    {"sample_from_anchor": False},
    {"draft_vocab_size": 20},
]


@pytest.mark.parametrize("fields", HEADS, ids=str)
def test_training_and_decoding_agree(target, fields):
    """Teacher-forced blocks and drafted blocks are one computation: feed a proposal back and get its logits."""
    drafter = make_drafter(target, **fields)
    features = torch.randn(2, 9, 96)
    anchor, num_slots = 5, drafter.config.num_slots
    ids = torch.randint(VOCAB, (2, 10 + num_slots))
    state, seen = drafter.start(2), []
    drafter.extend(state, features[:, :anchor])

    def pick(logits, token_ids, drafted_ids):
        seen.append(logits)
        places = logits.argmax(-1)
        if drafter.has_reduced_vocabulary:
            assert drafter.t2d[token_ids].all()
        return places, None

    proposal = drafter.propose(state, ids[:, anchor], pick)
    ids[:, anchor + 1 : anchor + 1 + num_slots] = proposal.ids
    output = drafter(ids[:, :9 + num_slots], torch.nn.functional.pad(features, (0, 0, 0, num_slots)),
                     torch.full((2, 1), anchor), torch.ones(2, 1, dtype=torch.bool))  # fmt: skip
    logits = drafter.base_logits(output.hidden)[:, 0]
    if drafter.markov_head is not None:
        logits = logits + drafter.markov_head.markov_w2(output.markov_states)[:, 0]
    drafted = torch.stack(seen, 1)
    torch.testing.assert_close(drafted, logits, rtol=1e-4, atol=1e-4)
    if proposal.confidence_logits is not None:
        torch.testing.assert_close(proposal.confidence_logits, output.confidence_logits[:, 0], rtol=1e-4, atol=1e-4)


def test_rows_of_different_length_equal_single_rows(target):
    drafter = make_drafter(target)
    features, anchors = torch.randn(3, 8, 96), torch.tensor([1, 2, 3])
    counts = [8, 3, 5]
    state = drafter.start(3)
    drafter.extend(state, features, counts)
    more, kept = torch.randn(3, 4, 96), [1, 4, 2]
    drafter.extend(state, more, kept)
    together = drafter.block_hidden(state, anchors)[0]
    for row in range(3):
        single = drafter.start(1)
        context = torch.cat([features[row, : counts[row]], more[row, : kept[row]]]).unsqueeze(0)
        drafter.extend(single, context)
        alone = drafter.block_hidden(single, anchors[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)
    state.select([2, 0])
    torch.testing.assert_close(drafter.block_hidden(state, anchors[[2, 0]])[0], together[[2, 0]], rtol=1e-4, atol=1e-4)


def test_context_grows_in_place_and_can_be_cropped(target):
    drafter = make_drafter(target)
    features, anchor = torch.randn(1, 700, 96), torch.tensor([3])
    state, whole = drafter.start(1), drafter.start(1)
    for start in range(0, 700, 7):
        drafter.extend(state, features[:, start : start + 7])
    drafter.extend(whole, features)
    expected = drafter.block_hidden(whole, anchor)[0]
    torch.testing.assert_close(drafter.block_hidden(state, anchor)[0], expected, rtol=1e-4, atol=1e-4)
    drafter.extend(state, torch.randn(1, 5, 96))
    state.crop([700])
    torch.testing.assert_close(drafter.block_hidden(state, anchor)[0], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="Cannot crop a context"):
        state.crop([701])


def test_expected_context_is_not_copied(target):
    drafter = make_drafter(target)
    features, anchor = torch.randn(1, 900, 96), torch.tensor([3])
    state, whole = drafter.start(1), drafter.start(1)
    state.expect(900)
    places = set()
    for begin in range(0, 900, 300):
        drafter.extend(state, features[:, begin : begin + 300])
        places.add(state.update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8), 0)[0].data_ptr())
    assert len(places) == 1
    drafter.extend(whole, features)
    expected = drafter.block_hidden(whole, anchor)[0]
    torch.testing.assert_close(drafter.block_hidden(state, anchor)[0], expected, rtol=1e-4, atol=1e-4)


def test_context_that_lacks_tokens(target):
    """What follows stands at its own positions, in each row."""
    drafter = make_drafter(target)
    features, anchors = torch.randn(2, 9, 96), torch.tensor([3, 4])
    state = drafter.start(2)
    drafter.extend(state, features[:, :4], [4, 2])
    state.move_to([10, 2])
    drafter.extend(state, features[:, 4:])
    assert state.context_lens == [9, 7] and state.positions(2, "cpu").tolist() == [[15, 16], [7, 8]]
    blocks = drafter.block_hidden(state, anchors)[0]
    for row, kept, missing in ((0, 4, 6), (1, 2, 0)):
        single = drafter.start(1)
        drafter.extend(single, features[row : row + 1, :kept])
        without = copy.deepcopy(single)
        single.move_to([kept + missing])
        for context in (single, without):
            drafter.extend(context, features[row : row + 1, 4:])
        alone = drafter.block_hidden(single, anchors[row : row + 1])[0]
        torch.testing.assert_close(blocks[row : row + 1], alone, rtol=1e-4, atol=1e-4)
        # Where the gap stands between two parts of the context, it matters how wide it is.
        other = drafter.block_hidden(without, anchors[row : row + 1])[0]
        assert torch.allclose(alone, other, atol=1e-4) == (missing == 0)
    state.select([1])
    assert state.positions(1, "cpu").tolist() == [[7]]


@pytest.mark.parametrize("fields", [
    {}, {"family": "gemma4_text"}, {"family": "qwen3", "sliding_window": 5, "layer_types": ["sliding_attention"] * 2}
], ids=str)  # fmt: skip
def test_gradient_checkpointing_changes_nothing(target, fields):
    drafter = make_drafter(target, **fields)
    batch = (torch.randint(VOCAB, (2, 12)), torch.randn(2, 12, 96), torch.tensor([[3, 6], [2, 4]]), torch.ones(2, 2))
    gradients = []
    for checkpointing in (False, True):
        drafter.zero_grad()
        if checkpointing:
            drafter.activation_checkpointing_enable()
        drafter.train()(*batch).hidden.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in drafter.layers.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_num_slots(target):
    drafter = make_drafter(target)
    state = drafter.start(1)
    drafter.extend(state, torch.randn(1, 4, 96))
    anchor = torch.tensor([7])
    assert torch.equal(drafter.propose(state, anchor, num_slots=2).ids, drafter.propose(state, anchor).ids[:, :2])
    for wrong in (0, 5):
        with pytest.raises(ValueError, match="num_slots must be 1 to 4"):
            drafter.propose(state, anchor, num_slots=wrong)
    with pytest.raises(ValueError, match="features have width 64"):
        drafter.extend(state, torch.randn(1, 4, 64))


@pytest.mark.parametrize("num_candidates", [None, 8])
def test_the_largest_probability_of_each_slot_is_told(target, num_candidates):
    drafter = make_drafter(target)
    state, anchors = drafter.start(2), torch.tensor([7, 9])
    drafter.extend(state, torch.randn(2, 4, 96))
    seen = []

    def most_likely(logits, token_ids, drafted_ids):
        seen.append(logits.float().softmax(-1))
        return logits.argmax(-1), None

    def drawn(logits, token_ids, drafted_ids):
        # What the caller draws from counts, whatever the logits are.
        probs = torch.softmax(logits.float() / 3, -1)
        seen.append(probs)
        return probs.argmax(-1), probs

    for pick in (most_likely, drawn):
        seen.clear()
        proposal = drafter.propose(state, anchors, pick, num_candidates=num_candidates)
        torch.testing.assert_close(proposal.max_probs, torch.stack(seen, 1).amax(-1))
    alone = drafter.propose(state, anchors, num_candidates=num_candidates)
    torch.testing.assert_close(
        alone.max_probs, drafter.propose(state, anchors, most_likely, num_candidates=num_candidates).max_probs
    )


class ProductShapes(TorchDispatchMode):
    """Notes the shapes of matrix products by kind."""

    def __init__(self):
        super().__init__()
        self.single, self.batched = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            (self.single if out.ndim == 2 else self.batched).append(tuple(out.shape))
        return out


@pytest.mark.parametrize("fields", [{"sample_from_anchor": False}, {}])
@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_the_output_head_is_one_product_for_all_rows(target, fields, num_slots):
    # As a batch of products a frozen head would be copied once per row, which takes many times as long.
    drafter = make_drafter(copy.deepcopy(target).requires_grad_(False), **fields)
    state = drafter.start(8)
    drafter.extend(state, torch.randn(8, 4, 96))
    with ProductShapes() as shapes:
        drafter.propose(state, torch.arange(8), num_slots=num_slots)
    assert (8 * num_slots, VOCAB) in shapes.single
    assert all(shape[-1] != VOCAB for shape in shapes.batched)


@pytest.mark.parametrize("fields", [{}, {"draft_vocab_size": 20}, {"family": "qwen3", "markov_head_type": "rnn"}])
def test_round_trip(target, tmp_path, fields):
    drafter = make_drafter(target, **fields).to(torch.bfloat16)
    if "draft_vocab_size" in fields:
        drafter.choose_vocabulary(range(0, 60, 3))
    drafter.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "embed_tokens.weight" not in tensors and "lm_head.weight" not in tensors
    assert {"fc.weight", "hidden_norm.weight", "norm.weight", "layers.1.self_attn.q_proj.weight"} <= set(tensors)
    assert ("d2t" in tensors) == ("draft_vocab_size" in fields)
    again = AutoDrafter.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16 and type(again) is DSparkModel
    again.bind(target)
    state, same = drafter.start(1), again.start(1)
    features = torch.randn(1, 5, 96)
    drafter.extend(state, features)
    again.extend(same, features)
    anchor = torch.tensor([4])
    assert torch.equal(drafter.propose(state, anchor).ids, again.propose(same, anchor).ids)


def test_positions_stay_exact_in_low_precision(target):
    drafter, low = make_drafter(target), make_drafter(target).to(torch.bfloat16)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low.rotary_emb.inv_freq, drafter.rotary_emb.inv_freq)


FACTORS = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [4.0, 8.0, 12.0, 16.0]}
OF_LENGTH = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32, **FACTORS},
}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("rope_type", OF_LENGTH)
def test_a_checkpoint_whose_frequencies_depend_on_the_length(target, tmp_path, family, rope_type):
    """Its context is read in pieces, and drafts come from the states that it was trained on: those of short texts."""
    drafter = make_drafter(target, family=family, max_position_embeddings=32)
    drafter.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 1e4, **OF_LENGTH[rope_type]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = AutoDrafter.from_pretrained(tmp_path).bind(target)
    features, ids, anchors = torch.randn(1, 120, 96), torch.randint(VOCAB, (1, 120)), torch.tensor([[20, 118]])
    with torch.no_grad():
        trained = loaded(ids, features, anchors, torch.ones_like(anchors).bool()).hidden
        short = loaded(ids[:, :25], features[:, :25], anchors[:, :1], torch.ones(1, 1).bool()).hidden
    torch.testing.assert_close(trained[:, :1], short)
    state = loaded.start(1)
    for piece in features[:, :118].split(50, 1):
        loaded.extend(state, piece)
    torch.testing.assert_close(loaded.block_hidden(state, ids[:, 118])[0], trained[:, 1])
    # Within the original length the layers turn by the angles that transformers has for it.
    positions = torch.arange(30).unsqueeze(0)
    stock = loaded.family.rotary_cls(loaded.config.decoder_config)
    torch.testing.assert_close(loaded.rope(features, positions), stock(features, positions))


def test_reduced_vocabulary_proposes_only_its_tokens(target):
    drafter = make_drafter(target, draft_vocab_size=20)
    allowed = set(range(0, 60, 3))
    drafter.choose_vocabulary(allowed)
    state = drafter.start(4)
    drafter.extend(state, torch.randn(4, 5, 96))
    assert set(drafter.propose(state, torch.arange(4)).ids.flatten().tolist()) <= allowed
    with pytest.raises(ValueError, match="needs so many different ids"):
        drafter.choose_vocabulary(range(19))
    with pytest.raises(ValueError, match="draft_vocab_size in its config"):
        make_drafter(target).choose_vocabulary(range(20))


def test_borrowing_leaves_the_target_alone(target):
    before = set(target.state_dict())
    drafter = make_drafter(target)
    assert set(target.state_dict()) == before
    assert not any(parameter is target.lm_head.weight for parameter in drafter.parameters())
    copied = copy.deepcopy(drafter)
    assert copied.borrowed.target is target
    with pytest.raises(ValueError, match="bind it to its target first"):
        DSparkModel(drafter.config).base_logits(torch.randn(1, 32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 60}, "vocabulary differs"),
        ({"hidden_size": 64}, "hidden size differs"),
        ({"num_hidden_layers": 5}, "number of target layers differs"),
    ],
)
def test_targets_that_do_not_fit(target, fields, message):
    drafter = make_drafter(target)
    drafter.config.target_name_or_path = "org/first"
    other = make_target(**fields)
    other.config.name_or_path = "org/second"
    with pytest.raises(ValueError, match=message) as error:
        drafter.bind(other)
    assert (
        "org/first" in str(error.value) and "LlamaForCausalLM" in str(error.value) or "org/second" in str(error.value)
    )


def test_a_drafter_that_caps_its_logits_otherwise_is_refused(target):
    drafter = make_drafter(target)
    drafter.config.decoder_config.final_logit_softcapping = 5.0
    with pytest.raises(ValueError, match="soft cap on the logits differs .* 5.0 and None"):
        drafter.bind(target)


def test_a_drafter_made_for_another_target_is_refused(target, tmp_path):
    target.save_pretrained(tmp_path / "Model-A")
    first = LlamaForCausalLM.from_pretrained(tmp_path / "Model-A")
    drafter = make_drafter(first)
    assert drafter.config.target_name_or_path == "Model-A"  # not where it lies on this machine
    make_target(seed=5).save_pretrained(tmp_path / "Model-B")
    second = LlamaForCausalLM.from_pretrained(tmp_path / "Model-B")
    with pytest.raises(ValueError, match="made for Model-A, and .*Model-B is another model"):
        drafter.bind(second)
    assert drafter.bind(second, check_name=False).is_bound_to(second)
    # The same weights under another name, in another dtype, are the same target.
    target.save_pretrained(tmp_path / "renamed")
    drafter.bind(LlamaForCausalLM.from_pretrained(tmp_path / "renamed", dtype=torch.bfloat16))


def test_a_folder_is_another_model_only_if_its_weights_say_so(target, tmp_path, caplog):
    """Other packagings have a name for the target, and no fingerprint."""
    target.save_pretrained(tmp_path / "copy")
    copied = LlamaForCausalLM.from_pretrained(tmp_path / "copy")
    for name in ("org/Model", "release"):
        drafter = make_drafter(target)
        drafter.config.target_name_or_path, drafter.config.target_fingerprint = name, None
        assert drafter.bind(copied).is_bound_to(copied)
        assert f"made for {name}; whether {tmp_path / 'copy'} is the same model in another place" in caplog.text
    copied.name_or_path = "org/Other"
    drafter.bind(copied)
    drafter.config.target_name_or_path = "org/Model"
    with pytest.raises(ValueError, match="org/Other is another model: the names differ"):
        drafter.bind(copied)


@pytest.mark.parametrize("fields", [{}, {"draft_vocab_size": 20}, {"own_embed_tokens": True, "own_lm_head": True}])
def test_a_target_with_added_tokens_keeps_its_drafter(fields):
    """The drafter knows a prefix of the vocabulary: it drafts as before, and reads any token."""
    target = make_target()
    drafter, features = make_drafter(target, **fields), torch.randn(2, 5, 96)

    def draft(anchors):
        state = drafter.start(2)
        drafter.extend(state, features)
        return drafter.propose(state, torch.tensor(anchors)).ids

    before = draft([4, 5])
    target.resize_token_embeddings(VOCAB + 8, mean_resizing=False)
    assert not drafter.is_bound_to(target)
    drafter.bind(target)  # by the rows that both have: this target has no name
    assert torch.equal(draft([4, 5]), before)
    assert int(draft([VOCAB, VOCAB + 7]).max()) < VOCAB
    # Tokens that were added last come out too, and are those of the target alone.
    target.lm_head.weight.data[VOCAB + 2] = 30 * target.lm_head.weight.data[7]
    prompt = torch.tensor([[3, VOCAB + 1, 9], [4, 5, 6]])
    plain = target.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert bool((plain[:, 3:] >= VOCAB).any())
    drafted = target.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0, eos_token_id=None,
                              assistant_model=drafter, speculation=SpeculationConfig(check_target=False))  # fmt: skip
    assert torch.equal(drafted, plain)
    options = dict(max_new_tokens=8, do_sample=True, pad_token_id=0, eos_token_id=None)
    assert target.generate(prompt, assistant_model=drafter, **options).shape == (2, 11)


@pytest.mark.parametrize("change", ["load", "data", "step"])
def test_copied_rows_of_the_head_follow_the_targets_weights(change):
    target = make_target()
    drafter = make_drafter(target, draft_vocab_size=20)
    drafter.choose_vocabulary(range(30, 50))
    drafter.start(1)
    copy_of_rows = drafter.borrowed.lm_head
    if change == "load":
        target.load_state_dict(make_target(seed=3).state_dict())
    elif change == "data":
        target.lm_head.weight.data += 1.0  # as merging an adapter does; no version counts it
    else:
        target.lm_head.weight.grad = torch.ones_like(target.lm_head.weight)
        torch.optim.SGD(target.parameters(), lr=0.1).step()
    drafter.start(1)
    rows = target.lm_head.weight[30:50]
    assert torch.equal(drafter.borrowed.lm_head.weight, rows) and torch.equal(drafter.head.weight, rows)
    assert drafter.borrowed.lm_head is copy_of_rows  # which compiled code has seen
    target.bfloat16()
    drafter.start(1)
    assert drafter.borrowed.lm_head.weight.dtype == torch.bfloat16


def test_a_target_without_output_head_is_refused(target):
    with pytest.raises(ValueError, match="no output head"):
        make_drafter(target).bind(target.model)
