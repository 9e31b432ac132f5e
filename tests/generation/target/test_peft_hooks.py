"""Adapters of PEFT that do more than change weights."""

import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny_targets import make_prompt, make_target, padded_prompts

from dspark_hf import SpeculationConfig

GREEDY = {"max_new_tokens": 16, "do_sample": False}


# PEFT hands its prefix over by the old name of the cache.
@pytest.mark.filterwarnings("ignore:Both `past_key_values` and:FutureWarning")
@pytest.mark.parametrize("config_cls", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens(config_cls):
    target = get_peft_model(make_target(), config_cls(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    ids = make_prompt(6)
    target.generate(input_ids=ids, **GREEDY)
    with pytest.raises(ValueError, match="LlamaForCausalLM are prepared by prompt or prefix tuning .PEFT"):
        target.generate(input_ids=ids, assistant_model=TableDrafter(64), **GREEDY)


def test_activated_lora():
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[5, 6])
    target = get_peft_model(make_target(), config).eval()
    ids = torch.cat([make_prompt(6), torch.tensor([[5, 6]])], 1)
    with pytest.raises(ValueError, match="activated LoRA .aLoRA. of LlamaForCausalLM counts tokens from the end"):
        target.generate(input_ids=ids, assistant_model=TableDrafter(64), **GREEDY)


def test_an_adapter_for_each_row():
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    target = get_peft_model(make_target(), config).eval()
    ids, mask = padded_prompts((5, 9, 2))
    options = {"attention_mask": mask, "adapter_names": ["default", "__base__", "default"], **GREEDY}
    plain = target.generate(input_ids=ids, **options)
    assert plain[1].tolist() != target.generate(input_ids=ids, attention_mask=mask, **GREEDY)[1].tolist()
    options["eos_token_id"] = int(plain[2, 9 + 4])
    plain = target.generate(input_ids=ids, **options)
    drafter, _ = greedy_oracle(target.get_base_model(), ids, [4, 1, 3], 16, mask, uneven=True)
    for row, row_ids in enumerate(plain.tolist()):
        drafter.rows[row] = [token for token, keep in zip(row_ids, mask[row], strict=False) if keep] + row_ids[9:]
    keep_drafting = SpeculationConfig(policy="fixed")
    out = target.generate(input_ids=ids, assistant_model=drafter, speculation=keep_drafting, **options)
    assert out.tolist() == plain.tolist() and drafter.last_stats.tau > 2
