"""DeepSeek-V4-shaped drafters: attention with sinks, a window that is counted from the anchor, what is kept of it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dspark_hf import AutoDrafter, DSparkConfig, DSparkModel, Eagle3Config
from dspark_hf.modeling.borrowing import check_fit

FOLDER = Path(__file__).parents[1] / "golden" / "v4_dspark"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def target():
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture
def drafter(target):
    return AutoDrafter.from_pretrained(FOLDER).bind(target)


def features(num_tokens, batch_size=1, seed=0):
    return torch.randn(batch_size, num_tokens, 3 * 64, generator=torch.Generator().manual_seed(seed))


def test_attention_that_drops_sinks_is_refused(drafter):
    assert drafter.config._attn_implementation == "eager"
    for load in (
        lambda: AutoDrafter.from_pretrained(FOLDER, attn_implementation="sdpa"),
        lambda: drafter.set_attn_implementation("sdpa"),
        lambda: drafter.set_attn_implementation({"decoder_config": "flash_attention_2"}),
    ):
        with pytest.raises(ValueError, match="have attention sinks, which attn_implementation=.* would drop"):
            load()
    drafter.set_attn_implementation("eager")


def test_only_the_window_is_kept_and_only_the_window_counts(drafter):
    long, anchor = features(300), torch.tensor([5])
    whole, pieces, window = (drafter.start(1) for _ in range(3))
    drafter.extend(whole, long)
    for begin in range(0, 300, 7):
        drafter.extend(pieces, long[:, begin : begin + 7])
    window.move_to([292])
    drafter.extend(window, long[:, -8:])
    expected = drafter.block_hidden(whole, anchor)[0]
    assert whole.context_lens == pieces.context_lens == [300] and whole.held_lens == [8]
    for state in (pieces, window):
        torch.testing.assert_close(drafter.block_hidden(state, anchor)[0], expected, **CLOSE)
    drafter.extend(window, features(1, seed=1))
    assert not torch.allclose(drafter.block_hidden(window, anchor)[0], expected, atol=1e-3)


def test_memory_is_flat_over_many_tokens(drafter):
    state = drafter.start(1)
    state.expect(10_000)
    sizes = set()
    for _ in range(10):
        drafter.extend(state, features(1000))
        sizes.add(sum(buffer.numel() for buffer in state._keys))
    assert len(sizes) == 1 and state.context_lens == [10_000]


def test_rows_of_uneven_length_are_drafted_as_alone(drafter):
    rows, anchors, counts = features(12, batch_size=3), torch.tensor([3, 4, 5]), [12, 2, 9]
    state = drafter.start(3)
    drafter.extend(state, rows, counts)
    drafter.extend(state, rows, [1, 4, 3])
    together = drafter.block_hidden(state, anchors)[0]
    for row, (first, second) in enumerate(zip(counts, [1, 4, 3], strict=True)):
        single = drafter.start(1)
        drafter.extend(single, torch.cat([rows[row, :first], rows[row, :second]])[None])
        alone = drafter.block_hidden(single, anchors[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone[0], **CLOSE)
    state.select([2, 0])
    torch.testing.assert_close(drafter.block_hidden(state, anchors[[2, 0]])[0], together[[2, 0]], **CLOSE)


def test_a_cropped_context_goes_on_at_the_right_place(drafter):
    long, anchor, state, expected = features(20), torch.tensor([5]), drafter.start(1), drafter.start(1)
    drafter.extend(state, long)
    state.crop([14])
    assert state.held_lens == [2] and state.positions(1, "cpu").tolist() == [[14]]
    drafter.extend(state, long[:, 14:])
    expected.move_to([12])
    drafter.extend(expected, long[:, 12:])
    hidden = drafter.block_hidden(state, anchor)[0]
    torch.testing.assert_close(hidden, drafter.block_hidden(expected, anchor)[0], **CLOSE)
    state.crop([3])
    assert state.held_lens == [0] and state.positions(1, "cpu").tolist() == [[3]]


def test_a_drafter_in_half_precision_keeps_what_was_float32(tmp_path):
    drafter = AutoDrafter.from_pretrained(FOLDER, dtype=torch.bfloat16)
    layer = drafter.layers[0]
    kept = (layer.self_attn.sinks, layer.attn_hc.fn, drafter.hc_head.hc_base, layer.mlp.gate.e_score_correction_bias)
    assert drafter.dtype == torch.bfloat16 and {tensor.dtype for tensor in kept} == {torch.float32}
    drafter.save_pretrained(tmp_path)
    again = AutoDrafter.from_pretrained(tmp_path)
    ours, theirs = drafter.state_dict(), again.state_dict()
    assert {name: value.dtype for name, value in ours.items()} == {name: value.dtype for name, value in theirs.items()}
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_fresh_drafter_has_the_sizes_of_its_target(target):
    drafter = DSparkModel.from_target(target, family="deepseek_v4", num_hidden_layers=2, target_layer_ids=[0, 2],
                                      n_routed_experts=4, block_size=5, markov_rank=8)  # fmt: skip
    decoder = drafter.config.decoder_config
    assert (decoder.hidden_size, decoder.o_groups, decoder.n_routed_experts) == (64, 2, 4)
    assert decoder.layer_types == ["sliding_attention"] * 2 and decoder.mlp_layer_types == ["moe"] * 2
    assert all(torch.isfinite(weight).all() for weight in drafter.parameters())
    assert drafter.layers[1].mlp.experts.gate_up_proj.std() > 0
    # Who asks for nothing gets what engines serve.
    assert DSparkConfig.from_target(target).decoder_config.model_type == "qwen3"


def test_layers_may_be_dense(target, tmp_path):
    fields = {"num_hidden_layers": 2, "target_layer_ids": [1, 2], "block_size": 5, "markov_rank": 8}
    fields |= {"n_routed_experts": 0, "moe_intermediate_size": 48}
    drafter = DSparkModel.from_target(target, family="deepseek_v4", **fields)
    names = {name for name, _ in drafter.named_parameters() if ".mlp." in name}
    assert names == {f"layers.{i}.mlp.{part}_proj.weight" for i in (0, 1) for part in ("gate", "up", "down")}
    assert drafter.layers[0].mlp.up_proj.weight.shape == (48, 64)
    drafter.save_pretrained(tmp_path)
    drafter, again = (one.bind(target).eval() for one in (drafter, AutoDrafter.from_pretrained(tmp_path)))
    proposals = []
    for one in (drafter, again):
        state = one.start(1)
        one.extend(state, features(20)[..., : 2 * 64])
        proposals.append(one.propose(state, torch.tensor([5])).ids)
    assert torch.equal(*proposals) and again.config.decoder_config.n_routed_experts == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda config: DSparkConfig.from_target(config, family="deepseek_v4", n_routed_experts=-1),
         "n_routed_experts must be a whole number from 0 up, got -1"),
        (lambda config: DSparkConfig.from_target(config, family="deepseek_v4", rope_theta=500.0),
         "several ropes, got rope_theta=500.0"),
        (lambda config: DSparkConfig.from_target(config, family="deepseek_v4", n_shared_experts=2),
         "one shared expert, got n_shared_experts=2"),
        (lambda config: DSparkConfig.from_target(config, family="deepseek_v4", n_routed_experts=1),
         "num_experts_per_tok=2 of n_routed_experts=1: give fewer of the former, or n_routed_experts=0"),
        (lambda config: DSparkConfig.from_target(AutoConfig.for_model("llama"), family="deepseek_v4"),
         "takes its sizes from a DeepSeek-V4 target, and this is a llama one"),
        (lambda config: DSparkConfig.from_target(config, family="deepseek_v4", layer_types=["sliding_attention",
                                                 "compressed_sparse_attention"], num_hidden_layers=2),
         "are of the kind 'sliding_attention' alone"),
        (lambda config: DSparkConfig.from_target(config, family="deepseek_v4", target_layer_ids=[0, 3]),
         "from 0 to 2 for a target of 3 layers, got"),
        (lambda config: DSparkConfig.from_target(config, target_layer_ids=[0, 2]), "its last layer, 2, is read after"),
        (lambda config: Eagle3Config.from_target(config, family="deepseek_v4"), "EAGLE-3"),
    ],
)  # fmt: skip
def test_what_such_a_drafter_cannot_be_is_refused(target, make, message):
    with pytest.raises(ValueError, match=message):
        make(target.config)


def test_another_targets_drafter_is_refused_with_both_sides(drafter, target):
    other = type(target)(type(target.config)(**{**target.config.to_dict(), "hidden_size": 128}))
    with pytest.raises(ValueError, match="hidden size differs between drafter .*v4_dspark.*64 and 128"):
        check_fit(drafter.config, other)
