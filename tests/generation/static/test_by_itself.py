"""`SpeculationConfig(static=...)`: where static rounds are taken that nobody asked for, and what takes their place."""

from types import SimpleNamespace

import pytest
import torch
from fake_drafters import TableDrafter
from scripted_drafters import scripted
from tiny_targets import VOCAB_SIZE, make_prompt, make_target, padded_prompts

from dspark_hf import Eagle3Model, SpeculationConfig
from dspark_hf.generation.static import buffers, possible, runner
from dspark_hf.generation.static.possible import NotStatic, check_by_itself

GREEDY = {"do_sample": False, "max_new_tokens": 30}


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Takes the CPU for a device on which rounds are captured, with a GiB of free memory."""
    memory = SimpleNamespace(free=2**30)
    monkeypatch.setattr(possible, "BY_ITSELF_ON", ("cpu",))
    monkeypatch.setattr(possible, "_free_bytes", lambda device: memory.free)
    monkeypatch.setattr("dspark_hf.generation.entry.why_not_captured", lambda request: None)
    return memory


def check(target, static, lengths=(5, 14), drafter=None, speculation=None, **options):
    """Tokens are plain ones; the stats."""
    ids, mask = padded_prompts(lengths)
    made, plain = scripted(target, ids, [0, 3, 5, 1], GREEDY["max_new_tokens"], mask)
    drafter = made if drafter is None else drafter
    options = {"attention_mask": mask, "assistant_model": drafter} | options | GREEDY
    speculation = SpeculationConfig(static=static, **speculation or {})
    assert target.generate(ids, speculation=speculation, **options).tolist() == plain.tolist()
    return drafter.last_stats


def test_by_default_nothing_is_static(target, on_a_gpu):
    stats = check(target, None)
    assert stats.round_kind == "ragged" and stats.why_ragged is None


@pytest.mark.parametrize(("static", "kind"), [("auto", "static"), (True, "static"), (False, "ragged")])
def test_rounds_are_as_asked(target, on_a_gpu, static, kind):
    assert check(target, static).round_kind == kind


def test_it_can_be_turned_off_whatever_a_config_asks_for(target, monkeypatch):
    stats = check(target, False, cache_implementation="static")
    assert stats.round_kind == "ragged" and stats.why_ragged is None
    monkeypatch.setattr(target.generation_config, "cache_implementation", "static")
    assert check(target, False).round_kind == "ragged"
    with pytest.raises(ValueError, match="compile=True compiles static rounds, and static=False turns them off"):
        SpeculationConfig(compile=True, static=False)
    with pytest.raises(ValueError, match="static must be one of"):
        SpeculationConfig(static="always")


@pytest.mark.parametrize(
    ("device", "why_not", "message"),
    [
        ("cuda", None, None),
        ("cuda:1", None, None),
        ("cpu", None, r"a device that is no cuda device \(cpu\)"),
        ("mps", None, r"a device that is no cuda device \(mps\)"),
        ("xpu:0", None, r"a device that is no cuda device \(xpu:0\)"),
        ("cuda", "a seed has a generator of its own in each call", r"rounds that are not captured \(a seed"),
    ],
)
def test_devices(device, why_not, message):
    if message is None:
        check_by_itself(torch.device(device), why_not)
    else:
        with pytest.raises(NotStatic, match=message):
            check_by_itself(torch.device(device), why_not)


def test_here_it_says_that_there_is_no_gpu(target):
    stats = check(target, "auto")
    assert stats.round_kind == "ragged" and "no cuda device (cpu)" in stats.why_ragged
    assert "rounds are not static: a target on a device that is no cuda device" in stats.summary()


def test_buffers_take_a_part_of_the_memory(target, on_a_gpu):
    drafter, _ = scripted(target, padded_prompts([5, 14])[0], [1], 8)
    on_a_gpu.free = 2**20
    stats = check(target, "auto", drafter=drafter)
    assert stats.round_kind == "ragged" and "more than 25% of the 0.00 GiB that are free" in stats.why_ragged
    # Who asks for them gets them, and what is there already takes no more.
    assert check(target, True, drafter=drafter).round_kind == "static"
    assert check(target, "auto", drafter=drafter).round_kind == "static"
    runner.release(target)
    assert check(target, "auto", drafter=drafter).round_kind == "ragged"


@pytest.mark.parametrize("kind", ["dspark", "eagle3"])
def test_sizes_of_buffers_are_foretold(target, monkeypatch, kind):
    made = []

    def make(*args):
        made.append((args, runner.num_bytes(*args[:4]), buffers.Buffers(*args)))
        return made[-1][-1]

    monkeypatch.setattr(runner, "Buffers", make)
    drafter = None if kind == "dspark" else Eagle3Model.from_target(target, target_layer_ids=[0, 2])
    assert check(target, True, lengths=[5, 14, 2], drafter=drafter).round_kind == "static"
    ((_, told, found),) = made
    tensors = [part for kv in found._kv for part in kv] + found._context
    assert told == sum(tensor.nbytes for tensor in tensors) > 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"repetition_penalty": 1.3}, "RepetitionPenaltyLogitsProcessor may look at more than"),
        ({"return_dict_in_generate": True}, "a cache that someone gets"),
        ({"drafter": TableDrafter(VOCAB_SIZE)}, "TableDrafter, which is none of this library's drafters"),
    ],
)
def test_a_call_that_cannot_be_static_is_ragged(target, on_a_gpu, options, why):
    ids = make_prompt(5)
    drafter = options.pop("drafter", None) or scripted(target, ids, [1], 8)[0]
    expected = target.generate(ids, **options, **GREEDY)
    out = target.generate(
        ids, assistant_model=drafter, speculation=SpeculationConfig(static="auto"), **options, **GREEDY
    )
    expected, out = (made if isinstance(made, torch.Tensor) else made.sequences for made in (expected, out))
    assert out.tolist() == expected.tolist()
    assert drafter.last_stats.round_kind == "ragged" and why in drafter.last_stats.why_ragged


def with_masks_of_its_own(target):
    attention = target.model.layers[1].self_attn
    forward = attention.forward
    attention.forward = lambda *args, attention_mask=None, **kwargs: forward(
        *args, attention_mask=None if attention_mask is None else attention_mask.clone(), **kwargs
    )


@pytest.mark.parametrize(
    ("family", "change", "why"),
    [
        ("qwen3_5_text", None, "whose cache holds more than keys and values"),
        ("llama", with_masks_of_its_own, "not every layer asks transformers' attention interface with a mask of"),
    ],
)
def test_a_target_that_cannot_be_static_is_ragged(on_a_gpu, family, change, why):
    target = make_target(family)
    if change is not None:
        change(target)
    # Padding, so that there is a mask.
    stats = check(target, "auto")
    assert stats.round_kind == "ragged" and why in stats.why_ragged
    with pytest.raises(ValueError, match=why):
        check(target, True)


def test_inputs_that_do_not_tell_rows_apart(target, on_a_gpu, monkeypatch):
    monkeypatch.setattr(runner.StaticRunner, "_may_pack", lambda runner: False)
    stats = check(target, "auto")
    assert stats.round_kind == "ragged" and "whose rows cannot be told apart" in stats.why_ragged
    with pytest.raises(ValueError, match="whose rows cannot be told apart by their positions alone"):
        check(target, True)


def test_without_memory_for_buffers_rounds_go_on_ragged(target, monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(runner, "Buffers", fail)
    with pytest.warns(UserWarning, match="not static, as was asked for: there is no memory .* .CUDA out of memory"):
        stats = check(target, True, lengths=[5, 14, 2])
    assert stats.round_kind == "ragged" and "no memory" in stats.why_ragged
    assert stats.tau > 2


def offloaded(target):
    target.lm_head._hf_hook = SimpleNamespace(execution_device=torch.device("cpu"))


def split_over_processes(target):
    target._tp_size = 2


@pytest.mark.parametrize(
    ("change", "why"),
    [(offloaded, "accelerate brings modules"), (split_over_processes, "split over processes")],
)
def test_placements_that_cannot_be_captured_are_told_and_ragged(change, why):
    target = make_target()
    drafter = scripted(target, padded_prompts([5, 14])[0], [1], 8)[0]
    change(target)
    assert why in possible.why_not_here(target, False)
    with pytest.warns(UserWarning, match=f"not static, as was asked for: .*{why}"):
        stats = check(target, True, drafter=drafter)
    assert stats.round_kind == "ragged" and why in stats.why_ragged
