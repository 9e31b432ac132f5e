"""The seam: the ways into the decoding loop, and all that must stay as it was."""

import contextlib
import copy
import functools
import inspect
import io
import pickle
import warnings

import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from tiny_targets import make_prompt, make_target
from transformers import DynamicCache, GenerationMixin

from dspark_hf import DSparkModel, SpeculationConfig, attach_drafter, detach_drafter
from dspark_hf.generation import seam, speculative_generate
from dspark_hf.modeling.cache_name import CACHE_NAME

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


def install_with(monkeypatch, version):
    """Warnings of an installation under that release of transformers."""
    monkeypatch.setattr("transformers.__version__", version)
    seam.remove()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seam.install()
    return [str(warning.message) for warning in caught]


def test_an_untested_transformers_is_told_once(monkeypatch):
    oldest, newest = seam.TESTED
    major, minor = newest.split(".")
    seam._warn_if_untested.cache_clear()
    try:
        for version in (oldest, f"{newest}.3", f"{newest}.0.dev0"):
            seam._warn_if_untested.cache_clear()
            assert install_with(monkeypatch, version) == []
        seam._warn_if_untested.cache_clear()
        newer = f"{major}.{int(minor) + 1}rc1"
        (told,) = install_with(monkeypatch, newer)
        assert f"tested with transformers {oldest} to {newest}, and this is {newer}" in told
        assert f"pip install 'transformers=={newest}.*'" in told
        assert install_with(monkeypatch, newer) == []
    finally:
        seam.install()


@pytest.mark.skipif(CACHE_NAME == "past_key_values", reason="the old name is the name")
@pytest.mark.parametrize("with_drafter", [False, True])
def test_the_old_name_of_the_cache_is_told_at_the_callers_line(target, with_drafter):
    ids, cache = make_prompt(7), DynamicCache(config=target.config)
    kwargs = {"assistant_model": TableDrafter(64)} if with_drafter else {}
    with pytest.warns(
        FutureWarning, match="`past_key_values` is deprecated: since.*takes the cache as `cache`"
    ) as told:
        out = target.generate(ids, past_key_values=cache, **kwargs, **GREEDY)
    assert [warning.filename for warning in told if warning.category is FutureWarning] == [__file__]
    assert out.tolist() == target.generate(ids, **GREEDY).tolist()
    assert cache.get_seq_length() == out.shape[1] - 1


def note_kernels(target, monkeypatch):
    """The experts' kernel of each pass, and tokens of the pass; decoding takes another, as off the CPU."""
    noted, forward = [], target.forward

    @contextlib.contextmanager
    def optimize():
        before = target.get_experts_implementation()
        target.set_experts_implementation({name: "batched_mm" for name in before})
        try:
            yield
        finally:
            target.set_experts_implementation(before)

    @functools.wraps(forward)
    def note(*args, **kwargs):
        noted.append((target.config._experts_implementation, kwargs["input_ids"].shape[1]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(target, "_optimize_model_for_decode", optimize)
    monkeypatch.setattr(target, "forward", note)
    return noted


@pytest.mark.parametrize("returns_cache", [False, True])
def test_experts_verify_by_the_kernel_of_plain_decoding(monkeypatch, returns_cache):
    target, ids = make_target("qwen3_moe"), make_prompt(7)
    target.set_experts_implementation("grouped_mm")
    noted = note_kernels(target, monkeypatch)
    options = {**GREEDY, "return_dict_in_generate": returns_cache}
    target.generate(ids, **options)
    plain_kernels = [kernel for kernel, _ in noted]
    assert plain_kernels == ["grouped_mm"] + ["batched_mm"] * 19
    noted.clear()
    drafter, _ = greedy_oracle(target, ids, [2, 0, 4])
    noted.clear()
    target.generate(ids, assistant_model=drafter, prefill_chunk_size=4, **options)
    assert noted[:2] == [("grouped_mm", 4), ("grouped_mm", 3)]
    assert len(noted) == 2 + drafter.last_stats.rounds and {kernel for kernel, _ in noted[2:]} == {"batched_mm"}
    assert set(target.get_experts_implementation().values()) == {"grouped_mm"}


@pytest.mark.parametrize("pass_id", [0, 2])
def test_experts_have_their_kernel_back_when_something_raises(monkeypatch, pass_id):
    """In the prompt's pass, where it is not changed yet, and in a round."""
    target, ids = make_target("qwen3_moe"), make_prompt(7)
    target.set_experts_implementation("grouped_mm")
    note_kernels(target, monkeypatch)
    calls = []

    def break_pass(module, args, output):
        calls.append(1)
        if len(calls) == pass_id + 1:
            raise KeyboardInterrupt

    target.model.layers[1].register_forward_hook(break_pass)
    cache = DynamicCache(config=target.config)
    with pytest.raises(KeyboardInterrupt):
        target.generate(ids, assistant_model=TableDrafter(64), **{CACHE_NAME: cache}, **GREEDY)
    assert set(target.get_experts_implementation().values()) == {"grouped_mm"}


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
        speculation = SpeculationConfig(max_draft_len=2, policy="fixed")
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
        target.generate(ids, speculation=SpeculationConfig(max_draft_len=1, policy="fixed"), **GREEDY)
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


def test_a_name_is_no_drafter(target):
    with pytest.raises(ValueError, match="assistant_model='runs/first' is a name: .*AutoDrafter.from_pretrained"):
        target.generate(torch.tensor([[5]]), assistant_model="runs/first")
