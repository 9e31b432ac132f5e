"""Targets that accelerate has split or offloaded, and drafters elsewhere than their target."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from tiny_targets import make_target, padded_prompts

from dspark_hf import DSparkModel, attach_drafter
from dspark_hf.generation import PromptLookup
from dspark_hf.modeling.fingerprint import target_fingerprint
from dspark_hf.modeling.placement import compute_device

PARTS = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", *(f"model.layers.{i}" for i in range(4)))


def split(target, folder):
    return dispatch_model(target, device_map=dict.fromkeys(PARTS, "cpu"), force_hooks=True)


def split_with_disk(target, folder):
    on_disk = ("lm_head", "model.layers.1", "model.layers.2")
    device_map = {part: "disk" if part in on_disk else "cpu" for part in PARTS}
    return dispatch_model(target, device_map=device_map, main_device="cpu", offload_dir=folder, force_hooks=True)


def offload(target, folder):
    return cpu_offload(target, execution_device=torch.device("cpu"))


def offload_to_disk(target, folder):
    disk_offload(target, folder, execution_device=torch.device("cpu"))
    return target


@pytest.mark.parametrize("returned", [True, False])
@pytest.mark.parametrize("lengths", [(9,), (5, 12, 1)])
def test_another_default_device(lengths, returned):
    """As after `torch.set_default_device("cuda")`: what belongs on the host stays there."""
    target = make_target()
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    ids, mask = padded_prompts(lengths)
    kwargs = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": returned}
    plain = target.generate(ids, **kwargs)
    for assistant in (drafter, PromptLookup(min_ngram=1)):
        with torch.device("meta"):
            out = target.generate(ids, assistant_model=assistant, **kwargs)
        assert torch.equal(out.sequences, plain.sequences) if returned else torch.equal(out, plain)


@pytest.fixture(params=[split, split_with_disk, offload, offload_to_disk])
def placed(request, tmp_path):
    """A placed target, and the same one at hand."""
    whole = make_target()
    return request.param(make_target(), str(tmp_path)), whole


@pytest.mark.parametrize("fields", [{}, {"draft_vocab_size": 40}])
def test_split_and_offloaded_targets(placed, fields):
    target, whole = placed
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1, **fields)
    assert drafter.device.type == "cpu"
    ids, mask = padded_prompts((5, 12, 1))
    kwargs = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False}
    plain = whole.generate(ids, **kwargs)
    assert target.generate(ids, assistant_model=drafter, **kwargs).tolist() == plain.tolist()
    attach_drafter(target, drafter)
    assert target.generate(ids, **kwargs).tolist() == plain.tolist() and drafter.device.type == "cpu"
    # A drafter that was bound to the whole model drafts alike.
    same = drafter.last_stats.accepted_lens
    whole.generate(ids, assistant_model=drafter, **kwargs)
    assert drafter.last_stats.accepted_lens == same


def test_fingerprint_of_a_placed_target(placed):
    target, whole = placed
    head = target.get_output_embeddings()
    before = head.weight.device
    assert target_fingerprint(target) == target_fingerprint(whole) is not None
    # The weights go back to where they were.
    assert head.weight.device == before and compute_device(head) == torch.device("cpu")


def test_module_without_hooks():
    assert compute_device(torch.nn.Linear(2, 2, device="meta")) == torch.device("meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
@pytest.mark.parametrize(("target_device", "drafter_device"), [("cpu", "cuda"), ("cuda", "cpu")])
@pytest.mark.parametrize("options", [{}, {"draft_vocab_size": 40}])
def test_drafter_on_another_device(target_device, drafter_device, options):
    target = make_target()
    ids, mask = padded_prompts((5, 12, 1))
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1, **options)
    target, drafter = target.to(target_device), drafter.to(drafter_device)
    ids, mask = ids.to(target_device), mask.to(target_device)
    for kwargs in ({"do_sample": False}, {"do_sample": True, "top_k": 1, "repetition_penalty": 1.2}):
        plain = target.generate(ids, attention_mask=mask, max_new_tokens=16, **kwargs)
        out = target.generate(ids, attention_mask=mask, max_new_tokens=16, assistant_model=drafter, **kwargs)
        assert out.tolist() == plain.tolist()
