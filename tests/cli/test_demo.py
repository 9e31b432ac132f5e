"""`dspark demo` and `dspark generate` on tiny models."""

import json

import pytest

from dspark_hf.cli.demo import PROMPTS, _about_ties, _verdict


def test_demo_prints_answers_and_a_table(dspark, models, tmp_path):
    out = tmp_path / "demo.json"
    outcome = dspark("demo", *models, "--max-new-tokens", "8", "--dtype", "float32", "--json", out)
    assert outcome.code == 0, outcome.err
    assert all(f"> {prompt}" in outcome.out for prompt in PROMPTS)
    result = json.loads(out.read_text())
    alone, both = result["DSpark"], result["DSpark with lookup"]
    for way in (alone, both):
        assert (way["identical"]["num_identical"], way["identical"]["num_answers"]) == (4, 4)
        assert f"{way['ratio']['total']:.2f}" in outcome.out and way["tokens"] == result["plain"]["tokens"]
    assert alone["lookup_share"] == 0.0
    assert f"tau (tokens per round) │ 1.00 │ {alone['tau']:.2f} │ {both['tau']:.2f}" in outcome.out
    assert "same ids as plain, up to ties │ │ yes │ yes" in outcome.out and "A tie" not in outcome.out
    # Before anything is loaded a line says what comes.
    assert outcome.out.startswith("4 questions, answered while you read;")
    assert result["provenance"]["versions"]


@pytest.mark.parametrize(("gap", "told"), [(0.03, "yes (1 with a tie)"), (3.0, "no: 1 differ")])
def test_a_tie_is_no_fault_and_a_fault_no_tie(gap, told):
    identical = {"num_identical": 3, "num_answers": 4, "differences": [{"gap": gap, "spacing": 0.0156}]}
    assert _verdict(identical) == told
    assert "rounding decides" in _about_ties([{"identical": identical}])


def test_generate_streams_what_the_api_gives(dspark, models, tiny_target_dir, tiny_tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    from dspark_hf.cli.terminal import visible

    outcome = dspark("generate", "hello", *models, "--max-new-tokens", "20", "--dtype", "float32")
    assert outcome.code == 0, outcome.err
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir, dtype=torch.float32)
    inputs = tiny_tokenizer("u:hello\na:", return_tensors="pt", return_token_type_ids=False)
    ids = target.generate(**inputs, max_new_tokens=20, do_sample=False)
    text = tiny_tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert outcome.out == " ".join(visible(text).split())
    assert "tokens/s, tau" in outcome.err
