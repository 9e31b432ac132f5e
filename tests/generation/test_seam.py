"""The seam: the ways into the decoding loop, and all that must stay as it was."""

import copy
import functools
import inspect
import io
import pickle

import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from tiny_targets import make_prompt, make_target
from transformers import GenerationMixin

from dspark_hf import DSparkModel, SpeculationConfig, attach_drafter, detach_drafter
from dspark_hf.generation import seam, speculative_generate

GREEDY = {"max_new_tokens": 20, "do_sample": False}


@pytest.fixture
def drafter(target):
    return DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)


def test_install_and_remove_are_idempotent():
    seam.install()
    wrapped = [
        getattr(GenerationMixin, name) for name in ("generate", "_validate_generation_mode", "_assisted_decoding")
    ]
    seam.install()
    assert wrapped == [
        getattr(GenerationMixin, name) for name in ("generate", "_validate_generation_mode", "_assisted_decoding")
    ]
    try:
        seam.remove()
        seam.remove()
        assert not seam.is_installed()
        assert "speculation" not in inspect.getsource(GenerationMixin.generate)
        target = make_target()
        with pytest.raises(ValueError, match="speculation"):
            target.generate(make_prompt(4), speculation=SpeculationConfig(), **GREEDY)
    finally:
        seam.install()
    assert seam.is_installed()


def test_remove_refuses_to_take_out_others(monkeypatch):
    method = GenerationMixin.generate

    @functools.wraps(method)
    def theirs(self, *args, **kwargs):
        return method(self, *args, **kwargs)

    del theirs.__dict__["__dspark_original__"]
    monkeypatch.setattr(GenerationMixin, "generate", theirs)
    assert seam.is_installed()
    with pytest.raises(RuntimeError, match="generate was wrapped again after dspark_hf"):
        seam.remove()


def test_unknown_transformers_is_refused(monkeypatch):
    seam.remove()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(GenerationMixin, "_assisted_decoding", lambda self, input_ids: None)
            with pytest.raises(
                RuntimeError, match="version of transformers is not supported.*_assisted_decoding has no"
            ):
                seam.install()
            assert not seam.is_installed()
    finally:
        seam.install()


def test_generation_without_a_drafter_is_untouched(target):
    ids = make_prompt(7)
    plain = target.generate(ids, **GREEDY)
    assistant = make_target(num_hidden_layers=2)
    assert target.generate(ids, assistant_model=assistant, **GREEDY).tolist() == plain.tolist()
    assert target.generate(ids, prompt_lookup_num_tokens=2, **GREEDY).tolist() == plain.tolist()
    with pytest.raises(ValueError, match="num_return_sequences has to be 1 when doing assisted generate"):
        target.generate(ids, assistant_model=assistant, num_return_sequences=2, do_sample=True, max_new_tokens=4)
    beams = target.generate(ids, num_beams=3, **GREEDY)
    assert beams.shape == plain.shape


def test_positional_arguments(target, drafter):
    ids = make_prompt(7)
    plain = target.generate(ids, **GREEDY)
    out = target.generate(ids, None, None, None, None, None, drafter, **GREEDY)
    assert out.tolist() == plain.tolist() and drafter.last_stats.rounds > 0


def test_custom_generate_needs_no_seam(target, drafter):
    ids = make_prompt(7)
    plain = target.generate(ids, **GREEDY)
    seam.remove()
    try:
        out = target.generate(ids, custom_generate=speculative_generate, drafter=drafter, **GREEDY)
        assert out.tolist() == plain.tolist()
        made = []

        class Streamer:
            def put(self, value):
                made.extend(value.tolist())

            def end(self):
                made.append("end")

        decode = functools.partial(speculative_generate, streamer=Streamer())
        speculation = SpeculationConfig(max_draft_len=2)
        target.generate(ids, custom_generate=decode, drafter=drafter, speculation=speculation, **GREEDY)
        assert made == [*plain[0, 7:].tolist(), "end"]
        assert max(drafter.last_stats.verified_lens) == 2
    finally:
        seam.install()
    out = target.generate(
        ids, custom_generate=speculative_generate, drafter=drafter, speculation=SpeculationConfig(), **GREEDY
    )
    assert out.tolist() == plain.tolist()


def test_a_nested_generation_keeps_its_own_options(target):
    ids = make_prompt(7)
    outer, plain = greedy_oracle(target, ids, [4])
    inner, _ = greedy_oracle(target, ids, [4])

    class Nested:
        def put(self, value):
            if inner.last_stats is None:
                target.generate(ids, assistant_model=inner, **GREEDY)

        def end(self):
            pass

    speculation = SpeculationConfig(max_draft_len=1)
    target.generate(ids, assistant_model=outer, speculation=speculation, streamer=Nested(), **GREEDY)
    assert max(outer.last_stats.verified_lens) == 1 and max(inner.last_stats.verified_lens) == 4


def test_attached_drafter_is_used_and_leaves_no_trace(target, drafter):
    ids = make_prompt(7)
    plain = target.generate(ids, **GREEDY)
    names, parameters = list(target.state_dict()), len(list(target.parameters()))
    assert attach_drafter(target, drafter) is target and target.drafter is drafter
    try:
        assert list(target.state_dict()) == names and len(list(target.parameters())) == parameters
        assert drafter not in list(target.modules())
        out = target.generate(ids, **GREEDY)
        assert out.tolist() == plain.tolist() and drafter.last_stats.rounds > 0
        # Positional, as the assistant's place may be taken by None.
        drafter.last_stats = None
        target.generate(ids, None, None, None, None, None, None, **GREEDY)
        assert drafter.last_stats is not None
        drafter.last_stats = None
        target.generate(ids, speculation=False, **GREEDY)
        assert drafter.last_stats is None
        target.generate(ids, speculation=SpeculationConfig(max_draft_len=1), **GREEDY)
        assert max(drafter.last_stats.verified_lens) == 1
        other = TableDrafter(64)
        target.generate(ids, assistant_model=other, **GREEDY)
        assert other.last_stats is not None
    finally:
        assert detach_drafter(target) is drafter
    assert not hasattr(target, "drafter")
    drafter.last_stats = None
    target.generate(ids, **GREEDY)
    assert drafter.last_stats is None


def test_attached_drafter_is_not_saved(target, drafter, tmp_path):
    attach_drafter(target, drafter)
    try:
        target.save_pretrained(tmp_path)
        loaded = type(target).from_pretrained(tmp_path)
    finally:
        detach_drafter(target)
    assert list(loaded.state_dict()) == list(target.state_dict()) and not hasattr(loaded, "drafter")


def test_attached_drafter_follows_its_target(target):
    drafter = TableDrafter(64)
    moves = []
    drafter.device = torch.device("meta")
    drafter.to = lambda device: moves.append(device) or setattr(drafter, "device", torch.device("cpu")) or drafter
    attach_drafter(target, drafter)
    try:
        target.generate(make_prompt(5), **GREEDY)
    finally:
        detach_drafter(target)
    assert moves == [target.device]


def test_attach_errors(drafter):
    target = make_target()
    with pytest.raises(ValueError, match="must be a drafter of this library.*got LlamaForCausalLM"):
        attach_drafter(target, make_target())
    with pytest.raises(ValueError, match="has no attached drafter"):
        detach_drafter(target)
    target.drafter = "something else"
    with pytest.raises(ValueError, match="has an attribute `drafter` of its own"):
        attach_drafter(target, drafter)
    with pytest.raises(ValueError, match="hidden size differs"):
        attach_drafter(make_target(hidden_size=64), drafter)


def test_deepcopy_and_pickle_of_a_target_with_a_drafter(target, drafter):
    ids = make_prompt(7)
    plain = target.generate(ids, **GREEDY)
    attach_drafter(target, drafter)
    try:
        twin = copy.deepcopy(target)
        assert twin.generate(ids, **GREEDY).tolist() == plain.tolist()
        torch.save(target.state_dict(), io.BytesIO())
    finally:
        detach_drafter(target)


def test_copies_of_a_pair_that_was_joined_in_spite_of_its_names(drafter):
    target, ids = make_target(), make_prompt(7)
    plain = target.generate(ids, **GREEDY)
    drafter.config.target_name_or_path = "someone/else"
    attach_drafter(target, drafter, check_target=False)
    for twin in (copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        assert twin.generate(ids, **GREEDY).tolist() == plain.tolist()
        assert twin.drafter.is_bound_to(twin) and twin.drafter.last_stats.rounds > 0


def test_a_pickled_drafter_has_no_target(target, drafter):
    ids = make_prompt(7)
    plain = target.generate(ids, assistant_model=drafter, **GREEDY)
    twin = pickle.loads(pickle.dumps(drafter))
    assert twin.borrowed is None and drafter.is_bound_to(target)
    assert target.generate(ids, assistant_model=twin, **GREEDY).tolist() == plain.tolist()


def test_peft_target():
    from peft import LoraConfig, get_peft_model

    target = make_target()
    lora = get_peft_model(target, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    lora.eval()
    ids = make_prompt(7)
    plain = lora.generate(input_ids=ids, **GREEDY)
    drafter = TableDrafter(64)
    assert lora.generate(input_ids=ids, assistant_model=drafter, **GREEDY).tolist() == plain.tolist()
    with lora.disable_adapter():
        disabled = lora.generate(input_ids=ids, **GREEDY)
        assert disabled.tolist() != plain.tolist()
        assert lora.generate(input_ids=ids, assistant_model=drafter, **GREEDY).tolist() == disabled.tolist()
    drafter.last_stats = None
    attach_drafter(lora, drafter)
    assert lora.generate(input_ids=ids, **GREEDY).tolist() == plain.tolist()
    assert drafter.last_stats is not None and detach_drafter(lora) is drafter


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_target(in_place):
    target = make_target(num_hidden_layers=2)
    ids = make_prompt(7)
    plain = target.generate(ids, **GREEDY)
    drafter, _ = greedy_oracle(target, ids, [1, 2], num_slots=2, taps=(0,))
    torch._dynamo.reset()
    if in_place:
        target.compile(backend="eager", dynamic=True)
        model = target
    else:
        model = torch.compile(target, backend="eager", dynamic=True)
    assert model.generate(ids, assistant_model=drafter, **GREEDY).tolist() == plain.tolist()
    attach_drafter(model, drafter)
    assert detach_drafter(model) is drafter


def test_pipeline(target, tiny_tokenizer):
    from transformers import pipeline

    target = make_target(vocab_size=260, num_hidden_layers=3)
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    outputs = []
    for assistant in (None, drafter):
        pipe = pipeline("text-generation", model=target, tokenizer=tiny_tokenizer, assistant_model=assistant)
        outputs.append(pipe("hello", max_new_tokens=12, do_sample=False)[0]["generated_text"])
    assert outputs[0] == outputs[1] and drafter.last_stats.rounds > 0
