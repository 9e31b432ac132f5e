"""Compiled layers, made once for each bucket; and rounds, in which nothing waits for the device."""

import shutil
from functools import partial

import pytest
import torch
from scripted_drafters import scripted
from tiny_targets import make_prompt, make_target, padded_prompts
from torch._dynamo.utils import counters
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from dspark_hf import DSparkModel, SpeculationConfig
from dspark_hf.generation.static import round, runner
from dspark_hf.generation.static.buffers import Bucket
from dspark_hf.generation.tokens.sampling import TokenChooser

COMPILED = SpeculationConfig(compile=True, policy="fixed")
GREEDY = {"do_sample": False}


@pytest.fixture
def traced(monkeypatch):
    """torch.compile that traces and guards, but runs what it traced as it is: code for a CPU takes long to make."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def num_graphs():
    return counters["stats"]["unique_graphs"]


def check(target, lengths, num_new, pattern=(0, 5, 2, 1, 3, 4), **options):
    ids, mask = padded_prompts(lengths)
    drafter, plain = scripted(target, ids, pattern, num_new, mask)
    out = target.generate(
        ids, attention_mask=mask, assistant_model=drafter, max_new_tokens=num_new, speculation=COMPILED, **GREEDY
    )
    assert out.tolist() == plain.tolist()
    return drafter.last_stats


# What a window hides is in the mask, so layers with one and without share code.
BOTH_KINDS = {"layer_types": ["sliding_attention", "full_attention"] * 2}


@pytest.mark.parametrize(
    ("family", "fields"), [("llama", {}), pytest.param("gemma3_text", BOTH_KINDS, marks=pytest.mark.slow)]
)
def test_layers_share_code_that_is_made_once_for_a_bucket(traced, family, fields):
    target = make_target(family, **fields)
    ids = make_prompt(11)
    drafter, plain = scripted(target, ids, range(6), 60)
    options = {"assistant_model": drafter, "speculation": COMPILED, "max_new_tokens": 60, **GREEDY}
    before = num_graphs()
    assert target.generate(ids, **options).tolist() == plain.tolist()
    stats = drafter.last_stats
    assert stats.round_kind == "static"
    # Code of the target's layers for each shape that it verifies, and of the drafter's for each that it drafts in.
    verified = {bucket.removesuffix("+draft") for bucket in stats.buckets if "x0x" not in bucket}
    drafted = {bucket.split("x")[2] for bucket in stats.buckets if "+draft" in bucket}
    assert num_graphs() - before == len(verified) + len(drafted)
    assert sum(counters["graph_break"].values()) == 0
    drafter.num_rounds.zero_()
    with torch._dynamo.config.patch(error_on_recompile=True), torch.compiler.set_stance("fail_on_recompile"):
        assert target.generate(ids, **options).tolist() == plain.tolist()


def test_a_target_is_left_as_it_was(traced, target):
    layer = target.model.layers[1]
    layer.forward = partial(type(layer).forward, layer)
    own = layer.forward
    try:
        check(target, [5, 14], 12)
        assert layer.forward is own
    finally:
        del layer.forward
    assert all("forward" not in vars(layer) for layer in target.model.layers)
    assert target.config._attn_implementation == "sdpa"


def test_a_missing_compiler_is_told(target, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler on the CPU, and g\+\+ or clang\+\+ or cl is not"):
        check(target, [5], 8)


@pytest.mark.parametrize("change", ["compiled", "without_a_list_of_layers"])
def test_targets_that_cannot_be_compiled(change):
    target = make_target()
    drafter = DSparkModel.from_target(target, target_layer_ids=[0, 2], mask_token_id=63, markov_rank=8)
    if change == "compiled":
        target.model.layers[0].compile()
        message = "modules that are compiled already"
    else:
        target.model.layers = torch.nn.Sequential(*target.model.layers)
        message = "whose decoder layers do not stand in one list"
    with pytest.raises(ValueError, match=f"compile=True together with a drafter .*{message}"):
        target.generate(make_prompt(5), assistant_model=drafter, speculation=COMPILED, max_new_tokens=8, **GREEDY)


WARPERS = [
    logits_process.TemperatureLogitsWarper(0.7),
    logits_process.TopKLogitsWarper(5),
    logits_process.TopPLogitsWarper(0.9),
    logits_process.MinPLogitsWarper(0.05),
    logits_process.TypicalLogitsWarper(0.9),
    logits_process.EpsilonLogitsWarper(1e-3),
    logits_process.LogitNormalization(),
    logits_process.InfNanRemoveLogitsProcessor(),
]


@pytest.mark.parametrize("verification", ["block", "token"])
@pytest.mark.parametrize("processors", [None, [], WARPERS], ids=["greedy", "drawn", "processed"])
def test_a_round_on_no_device_reads_nothing(processors, verification, monkeypatch):
    target = make_target()
    drafter = DSparkModel.from_target(target, target_layer_ids=[0, 2], mask_token_id=63, markov_rank=8, block_size=5)
    found = {}
    load = runner.StaticRunner._load
    monkeypatch.setattr(
        runner.StaticRunner, "_load", lambda self, *args: found.update(buffers=self._buffers) or load(self, *args)
    )
    target.generate(
        make_prompt(5, batch_size=3), assistant_model=drafter, max_new_tokens=4, cache_implementation="static",
        do_sample=processors is not None,
    )  # fmt: skip
    # On meta tensors whatever reads one raises.
    buffers, target, drafter = found["buffers"], target.to("meta"), drafter.to("meta")
    drafter.bind(target, check_name=False)
    for name in ("visible", "block", "lens", "offered", "shift", "last_position", "context_shift", "first_positions",
                 "report"):  # fmt: skip
        setattr(buffers, name, getattr(buffers, name).to("meta"))
    buffers._kv = [tuple(part.to("meta") for part in kv) for kv in buffers._kv]
    buffers._context = [part.to("meta") for part in buffers._context]
    buffers._views, buffers._candidates = {}, {}
    speculation = SpeculationConfig(verification=verification)
    chooser = TokenChooser(LogitsProcessorList(processors or []), processors is not None, 4, speculation)
    static_round = round.StaticRound(target, drafter, chooser, 16, 64)
    view = buffers.view(4, 128, None if processors is None else 16)
    with torch.no_grad():
        for width in (0, 1, 2, 4, 6):
            static_round.run(view, Bucket(4, width, 128, True))
            if width > 0:
                static_round.run(view, Bucket(4, width, 128, False))


@pytest.mark.slow
def test_generated_code_is_exact():
    target = make_target()
    check(target, [11], 16)
    check(target, [5, 14, 2, 9], 12)
