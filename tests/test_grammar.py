"""A grammar engine on both sides: the text is that of plain `generate()`, and drafts may know the grammar."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LogitsProcessorList

from dspark_hf import AutoDrafter, SpeculationConfig

xgrammar = pytest.importorskip("xgrammar")
from xgrammar.contrib.hf import LogitsProcessor as StatefulMask  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "grammar.py"
GrammarMask = runpy.run_path(str(EXAMPLE))["GrammarMask"]
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "maxLength": 8},
        "b": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["a", "b"],
}
ALONE = SpeculationConfig(policy="fixed", prompt_lookup=False)


@pytest.fixture(scope="module")
def grammar(tiny_tokenizer):
    tokens = xgrammar.TokenizerInfo.from_huggingface(tiny_tokenizer, vocab_size=260)
    return xgrammar.GrammarCompiler(tokens).compile_json_schema(json.dumps(SCHEMA), any_whitespace=False)


@pytest.fixture
def pair(tiny_target_dir, tiny_drafter_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_target_dir), AutoDrafter.from_pretrained(tiny_drafter_dir)


# Of control characters in text the grammar knows nothing: JSON is read with `strict=False`.
def answers(target, inputs, mask, tokenizer, **options):
    options = {"do_sample": False, "max_new_tokens": 60, **options}
    out = target.generate(**inputs, logits_processor=LogitsProcessorList([mask]), **options)
    return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_text_is_that_of_plain_generate_in_either_way(pair, grammar, tiny_tokenizer):
    target, drafter = pair
    inputs = tiny_tokenizer(["Say tea in JSON", "Say it"], return_tensors="pt", padding=True, padding_side="left")
    length = inputs["input_ids"].shape[1]
    plain = answers(target, inputs, StatefulMask(grammar), tiny_tokenizer)
    assert all(set(json.loads(text, strict=False)) == {"a", "b"} for text in plain) and plain[0] != plain[1]
    assert answers(target, inputs, GrammarMask(grammar, length), tiny_tokenizer) == plain
    taken = []
    for mask in (StatefulMask(grammar), GrammarMask(grammar, length)):
        options = {"assistant_model": drafter, "speculation": ALONE}
        assert answers(target, inputs, mask, tiny_tokenizer, **options) == plain
        taken.append(drafter.last_stats.tau)
    # A random drafter hits upon next to nothing by itself, and on what must follow where it knows the grammar.
    assert taken[1] > taken[0] + 0.5


def test_looked_up_drafts_need_not_keep_to_the_grammar(pair, grammar, tiny_tokenizer):
    target, drafter = pair
    inputs = tiny_tokenizer('{"a": "tea tea", "c": 1} {"a": "tea tea", "c": 1}', return_tensors="pt")
    mask = GrammarMask(grammar, inputs["input_ids"].shape[1])
    plain = answers(target, inputs, mask, tiny_tokenizer)
    options = {"assistant_model": drafter, "speculation": SpeculationConfig(policy="fixed", prompt_lookup=True)}
    assert answers(target, inputs, mask, tiny_tokenizer, **options) == plain
    assert drafter.last_stats.lookup_verifications > 0


def test_sampled_text_keeps_to_the_grammar(pair, grammar, tiny_tokenizer):
    target, drafter = pair
    inputs = tiny_tokenizer(["Say tea"] * 4, return_tensors="pt")
    mask = GrammarMask(grammar, inputs["input_ids"].shape[1])
    options = {"do_sample": True, "assistant_model": drafter, "speculation": ALONE}
    texts = answers(target, inputs, mask, tiny_tokenizer, **options)
    assert all(set(json.loads(text, strict=False)) == {"a", "b"} for text in texts) and len(set(texts)) > 1


def test_a_mask_depends_on_the_prefix_alone(grammar, tiny_tokenizer):
    """In whatever order prefixes come, of however many rows, also such as the grammar does not allow."""
    text = tiny_tokenizer('{"a": "sun", "b": [true]}')["input_ids"]
    wrong = [*text[:9], 5, 5, 5]
    used, prefixes = GrammarMask(grammar, 2), [text[:9], wrong, text[:4], text, [*text, 257], text[:12], []]
    for prefix in [*prefixes, *reversed(prefixes)]:
        ids = torch.tensor([[0, 0, *prefix]])
        expected = GrammarMask(grammar, 2)(ids, torch.zeros(1, 260))
        assert torch.equal(used(ids, torch.zeros(1, 260)), expected)
    rows = torch.tensor([[0, 0, *text[:9]], [0, 0, *wrong[3:12]]])
    masked = used(rows, torch.zeros(2, 260))
    assert 0 < masked[0].isfinite().sum() < 260 and masked[1].isfinite().all()


def test_the_page_has_the_processor_of_the_example():
    source = EXAMPLE.read_text(encoding="utf-8")
    body = re.search(r"^class GrammarMask.*?(?=\n\n\ndef )", source, re.MULTILINE | re.DOTALL)[0]
    assert body in (ROOT / "docs" / "how_to" / "grammar.md").read_text(encoding="utf-8")


def test_a_tag_is_masked_and_the_text_around_it_is_free(tiny_tokenizer):
    tokens = xgrammar.TokenizerInfo.from_huggingface(tiny_tokenizer, vocab_size=260)
    tag = {
        "type": "tag",
        "begin": "<call>",
        "content": {"type": "json_schema", "json_schema": SCHEMA},
        "end": "</call>",
    }
    form = {"type": "triggered_tags", "triggers": ["<call>"], "tags": [tag]}
    grammar = xgrammar.GrammarCompiler(tokens).compile_structural_tag({"type": "structural_tag", "format": form})
    mask, allowed = GrammarMask(grammar, 0), []
    for text in ("Let me ", "Let me see <call>", 'Let me see <call>{"'):
        ids = torch.tensor([tiny_tokenizer(text)["input_ids"]])
        allowed.append(int(mask(ids, torch.zeros(1, 260)).isfinite().sum()))
    assert allowed[0] > 200 and allowed[1] < 10 and allowed[2] == 1
