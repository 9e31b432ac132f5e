"""Quantised targets on a CPU: with a drafter the ids are those of plain `generate()` of the same quantised target.

Each form is skipped where its package is not installed; `make quantised` brings both.
"""

import importlib.util

import pytest
import torch
from fake_drafters import OracleDrafter
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig

from dspark_hf import AutoDrafter, DSparkModel, SpeculationConfig
from dspark_hf.hub.embedded import resolve_drafter, resolve_target

FORMS = ("torchao int8", "bitsandbytes int8", "bitsandbytes nf4")


def config_of(form):
    """What `from_pretrained` is told."""
    if form == "torchao int8":
        quantization = pytest.importorskip("torchao.quantization")
        return TorchAoConfig(quantization.Int8WeightOnlyConfig())
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    if form == "bitsandbytes int8":
        # With a threshold, which columns are left out depends on all tokens of a pass. A real target parts all the
        # same, since activations are rounded to int8.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def load(folder, form, dtype="float32"):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=config_of(form))
    model.generation_config.eos_token_id = None
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A target whose widths are multiples of 64: on processors with bfloat16 bitsandbytes takes no others."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, pad_token_id=256, bos_token_id=257, eos_token_id=258,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("target")
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=FORMS)
def quantised(request, folder):
    return load(folder, request.param)


OPTIONS = {"do_sample": False, "max_new_tokens": 24, "pad_token_id": 256}
QUIET = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")


@QUIET
def test_it_is_quantised(quantised, folder):
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(3, 20).unsqueeze(0).to(quantised.device)
    assert not torch.equal(quantised(ids).logits.cpu().float(), plain(ids.cpu()).logits)


@QUIET
@pytest.mark.parametrize("num_rows", [1, 3])
def test_ids_are_those_of_the_same_quantised_target(quantised, num_rows):
    ids = torch.randint(1, 250, (num_rows, 9), device=quantised.device)
    mask = torch.ones_like(ids)
    for row in range(num_rows):
        mask[row, :row] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    plain = quantised.generate(**inputs, **OPTIONS)
    rows = [row[mask_row.bool().tolist().index(True) :].tolist() for row, mask_row in zip(plain, mask, strict=True)]
    # Drafts of which 0 to 4 stand, and those of a model that reads the quantised target's states.
    drafters = [
        OracleDrafter(rows, range(5), 260, uneven=True),
        DSparkModel.from_target(quantised, num_hidden_layers=1, block_size=4, markov_rank=8, target_layer_ids=[0, 2]),
    ]
    for drafter in drafters:
        out = quantised.generate(**inputs, assistant_model=drafter, **OPTIONS)
        assert out.tolist() == plain.tolist()
    assert sum(drafters[0].last_stats.accepted_lens) > 0


@pytest.mark.slow
@QUIET
@pytest.mark.parametrize("form", ["torchao int8"])
def test_the_embedded_drafter_drafts_for_the_quantised_target(form):
    from transformers import AutoTokenizer

    path = resolve_target("embedded")
    target, tokenizer = load(path, form), AutoTokenizer.from_pretrained(path)
    drafter = AutoDrafter.from_pretrained(resolve_drafter("embedded"), dtype="float32")
    messages = [{"role": "user", "content": "Give me three tips for learning a new language."}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(target.device)
    speculation = SpeculationConfig(policy="fixed", prompt_lookup=False)
    options = {"do_sample": False, "max_new_tokens": 48}
    out = target.generate(**inputs, assistant_model=drafter, speculation=speculation, **options)
    assert torch.equal(out, target.generate(**inputs, **options))
    assert drafter.last_stats.tau > 1.3
