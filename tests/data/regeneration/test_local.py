import copy
import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from dspark_hf.cli.main import app
from dspark_hf.data.chat import prompt_ids
from dspark_hf.data.conversation_files import load_conversations
from dspark_hf.data.regeneration import loops, regenerate, synthesize
from dspark_hf.data.regeneration.answer_file import AnswerFile
from dspark_hf.data.regeneration.loops import ends_in_loop
from dspark_hf.data.regeneration.synthesis import PromptSampler, load_openings
from dspark_hf.data.rows import encode_row
from dspark_hf.trainers.rows import load_rows

# Every token is a word, so that whatever a random target writes is text.
WORDS = ["<pad>", "<eos>", "user:", "assistant:", *(f"word{i}" for i in range(60))]
EOS = WORDS.index("<eos>")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SETTINGS = {"seed": 5, "batch_size": 3, "max_new_tokens": 8, "progress": False}
QUESTIONS = [
    ["word1 word2"],
    ["word48 word49 word50", "word10"],
    ["word3 word4 word5 word6 word7 word8 word9"],
    ["word1 word2"],
    ["word11"],
    ["word12 word13 word14"],
]


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    model.name_or_path = "somewhere/tiny-target"
    return model


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"turns": turns}) + "\n" for turns in QUESTIONS))
    return path


def prompts_of(records):
    return [record["messages"][0]["content"] for record in records]


def expected_answer(target, tokenizer, messages, max_new_tokens):
    """One row, no padding, plain `generate()`."""
    prompt = torch.tensor([prompt_ids(tokenizer, messages)])
    ids = target.generate(prompt, do_sample=False, max_new_tokens=max_new_tokens)[0, prompt.shape[1] :].tolist()
    return tokenizer.decode([token for token in ids if token != EOS], skip_special_tokens=True), ids[-1] == EOS


def test_synthesized_answers_are_the_targets_own(target, tokenizer, tmp_path):
    out = tmp_path / "new" / "data.jsonl"
    assert synthesize(target, tokenizer, 20, out, **SETTINGS) == 20
    records = load_conversations(out)
    assert len(set(prompts_of(records))) == len(records) == 20
    for record in records:
        user, assistant = record["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert len(user["content"].split()) >= 3
        assert (assistant["content"], record["complete"]) == expected_answer(target, tokenizer, [user], 8)
    assert {record["complete"] for record in records} == {True, False}


def test_few_samples_are_the_first_drawn_of_any_length(target, tokenizer, tmp_path, monkeypatch):
    sample, asked, drawn = PromptSampler.sample, [], []

    def keep_what_is_drawn(self, num_prompts, seed):
        asked.append(num_prompts)
        prompts = sample(self, num_prompts, seed)
        drawn.extend(prompts)
        return prompts

    monkeypatch.setattr(PromptSampler, "sample", keep_what_is_drawn)
    synthesize(target, tokenizer, 6, tmp_path / "data.jsonl", **{**SETTINGS, "batch_size": 20})
    assert set(prompts_of(load_conversations(tmp_path / "data.jsonl"))) == set(list(dict.fromkeys(drawn))[:6])
    assert sum(asked) <= 18, "few samples need few draws"


def test_seed_decides_the_content(target, tokenizer, tmp_path):
    first, again, other = (tmp_path / name for name in ("first.jsonl", "again.jsonl", "other.jsonl"))
    state = torch.get_rng_state()
    synthesize(target, tokenizer, 8, first, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), state)
    synthesize(target, tokenizer, 8, again, **SETTINGS)
    synthesize(target, tokenizer, 8, other, **{**SETTINGS, "seed": 6})
    assert first.read_bytes() == again.read_bytes()
    assert not set(prompts_of(load_conversations(first))) & set(prompts_of(load_conversations(other)))


def test_a_file_that_is_continued_has_the_same_conversations(target, tokenizer, tmp_path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    synthesize(target, tokenizer, 30, whole, **SETTINGS)
    synthesize(target, tokenizer, 16, broken, **SETTINGS)
    with open(broken, "a") as file:
        file.write('{"messages": [{"role": "us')
    assert synthesize(target, tokenizer, 30, broken, **SETTINGS, resume=True) == 30
    # Those asked for first stand first, whatever their length.
    assert sorted(broken.read_text().splitlines()) == sorted(whole.read_text().splitlines())


def test_killed_run_keeps_its_batches(target, tokenizer, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    synthesize(target, tokenizer, 12, whole, **SETTINGS)
    generate, calls = target.generate, []

    def dies_at_the_fourth_call(**inputs):
        calls.append(inputs)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(**inputs)

    monkeypatch.setattr(target, "generate", dies_at_the_fourth_call)
    with pytest.raises(KeyboardInterrupt):
        synthesize(target, tokenizer, 12, killed, **SETTINGS)
    monkeypatch.undo()
    assert 0 < len(load_conversations(killed)) < 12
    synthesize(target, tokenizer, 12, killed, **SETTINGS, resume=True)
    assert killed.read_bytes() == whole.read_bytes()


def test_file_with_only_a_torn_line_starts_anew(target, tokenizer, tmp_path):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    synthesize(target, tokenizer, 4, whole, **SETTINGS)
    torn.write_text('{"messages"')
    sidecar = json.loads((tmp_path / "whole.jsonl.provenance.json").read_text())
    (tmp_path / "torn.jsonl.provenance.json").write_text(json.dumps({**sidecar, "rounds_done": 0}))
    synthesize(target, tokenizer, 4, torn, **SETTINGS, resume=True)
    assert torn.read_bytes() == whole.read_bytes()


def test_excluded_prompts_do_not_occur(target, tokenizer, tmp_path):
    held_out, out = tmp_path / "held_out.jsonl", tmp_path / "out.jsonl"
    synthesize(target, tokenizer, 6, held_out, **SETTINGS)
    synthesize(target, tokenizer, 12, out, **SETTINGS, exclude=held_out)
    assert not set(prompts_of(load_conversations(held_out))) & set(prompts_of(load_conversations(out)))


def test_provenance_says_how_the_file_was_made(target, tokenizer, tmp_path):
    synthesize(target, tokenizer, 3, tmp_path / "data.jsonl", **SETTINGS, top_k=30)
    provenance = json.loads((tmp_path / "data.jsonl.provenance.json").read_text())
    made_with = {"target": "somewhere/tiny-target", "kind": "synthesize", "seed": 5, "top_k": 30, "dtype": "float32"}
    assert made_with.items() <= provenance["settings"].items()
    assert provenance["num_conversations"] == 3
    assert provenance["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_prompts_are_drawn_from_the_top_k(target, tokenizer):
    sampler = PromptSampler(target, tokenizer, top_k=4, max_prompt_tokens=3)
    opening = torch.tensor([prompt_ids_of_opening(tokenizer)])
    with torch.no_grad():
        probs, ids = target(opening).logits[0, -1].softmax(-1).topk(4)
    rows = []
    generate = target.generate

    def keep_rows(**inputs):
        out = generate(**inputs)
        rows.extend(out[:, opening.shape[1]].tolist())
        return out

    target.generate = keep_rows
    try:
        sampler.sample(4000, seed=1)
    finally:
        del target.generate
    counts = torch.tensor([rows.count(token) for token in ids.tolist()], dtype=torch.float32)
    expected = probs / probs.sum() * 4000
    assert counts.sum() == 4000
    # One in a million draws lies above, by chi-square with 3 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 30.7


def prompt_ids_of_opening(tokenizer):
    return tokenizer("user: ", add_special_tokens=False)["input_ids"]


def test_openings_begin_the_prompts_in_turn(target, tokenizer, tmp_path):
    file = tmp_path / "openings.txt"
    file.write_text("# a comment\n\nword1 word2\nword3\\nword4\n", encoding="utf-8")
    assert load_openings(file) == ["word1 word2", "word3\nword4"]
    out = tmp_path / "out.jsonl"
    synthesize(target, tokenizer, 12, out, openings=file, **SETTINGS)
    prompts = [record["messages"][0]["content"] for record in load_conversations(out)]
    by_opening = [sum(prompt.startswith(text) for prompt in prompts) for text in ("word1 word2", "word3\nword4")]
    assert min(by_opening) > 2 and sum(by_opening) == len(prompts) == 12
    assert all(set(prompt.split()) <= set(WORDS) for prompt in prompts), "words must not be glued together"
    assert min(len(prompt.split()) for prompt in prompts) > 3, "the target must go on from the openings"


def test_file_without_openings_is_refused(tmp_path):
    file = tmp_path / "openings.txt"
    file.write_text("# nothing\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no opening"):
        load_openings(file)


def test_target_without_new_prompts_is_reported(target, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no new prompt with a usable answer in 8 rounds; .* has 1 conversations,"):
        synthesize(target, tokenizer, 5, tmp_path / "data.jsonl", **SETTINGS, top_k=1)
    assert len(load_conversations(tmp_path / "data.jsonl")) == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template, so the target cannot be asked"),
        ("{{ 'user: ' + messages[0]['content'][:3] }}", "does not show a user's text as it is"),
        ("{{ messages[0]['content'] }}", "puts nothing before a user's text"),
    ],
)
def test_template_without_an_opening_is_refused(target, tokenizer, tmp_path, template, message):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    with pytest.raises(ValueError, match=message):
        synthesize(target, other, 5, tmp_path / "data.jsonl", **SETTINGS)


def test_target_without_an_end_is_refused(target, tokenizer, questions, tmp_path):
    endless, endless_target = copy.deepcopy(tokenizer), copy.deepcopy(target)
    endless.eos_token, endless_target.generation_config.eos_token_id = None, None
    with pytest.raises(ValueError, match="names an end-of-sequence token. Set"):
        regenerate(endless_target, endless, questions, tmp_path / "data.jsonl", **SETTINGS)


def test_regenerated_turns_are_answered_in_order(target, tokenizer, questions, tmp_path):
    out = tmp_path / "data.jsonl"
    assert regenerate(target, tokenizer, questions, out, **{**SETTINGS, "max_new_tokens": 60}) == 5
    records = load_conversations(out)
    assert sorted(prompts_of(records)) == sorted({turns[0] for turns in QUESTIONS})
    answered = 0
    for record in records:
        for i in range(1, len(record["messages"]), 2):
            text, ended = expected_answer(target, tokenizer, record["messages"][:i], 60)
            assert record["messages"][i] == {"role": "assistant", "content": text}
            assert ended or not record["complete"]
            answered += 1
    assert answered == 6


def test_conversation_ends_where_an_answer_is_cut_off(target, tokenizer, tmp_path):
    conversation = [{"role": "user", "content": text} for text in ("word3 word4", "word10")]
    regenerate(target, tokenizer, [conversation], tmp_path / "data.jsonl", **{**SETTINGS, "max_new_tokens": 1})
    (record,) = load_conversations(tmp_path / "data.jsonl")
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"]
    assert record["complete"] is False


def test_given_answers_are_replaced_and_system_turns_kept(target, tokenizer, tmp_path):
    system, user = {"role": "system", "content": "word5"}, {"role": "user", "content": "word1"}
    given = [system, user, {"role": "assistant", "content": "something else"}]
    regenerate(target, tokenizer, [given], tmp_path / "data.jsonl", **SETTINGS)
    (record,) = load_conversations(tmp_path / "data.jsonl")
    text, _ = expected_answer(target, tokenizer, [system, user], 8)
    assert record["messages"] == [system, user, {"role": "assistant", "content": text}]


@pytest.mark.parametrize("max_new_tokens", [1, 40])
def test_a_base_model_teaches_what_it_wrote(target, tokenizer, tmp_path, max_new_tokens):
    own = copy.deepcopy(tokenizer)
    own.chat_template = None
    out = tmp_path / "data.jsonl"
    regenerate(target, own, [[{"role": "user", "content": "word3 word4"}]], out,
               **{**SETTINGS, "max_new_tokens": max_new_tokens})  # fmt: skip
    (record,) = load_conversations(out)
    prompt = torch.tensor([own("word3 word4")["input_ids"]])
    written = target.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False)[0].tolist()
    (row,) = load_rows([str(out)], own, 64) if max_new_tokens > 1 else [encode_row(record, own)]
    assert row["input_ids"] == written
    assert row["loss_mask"] == [place >= prompt.shape[1] for place in range(len(written))]


def test_a_line_that_is_no_prompt_is_kept_aside(target, tokenizer, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "data.jsonl"
    prompts.write_text('{"prompt": "word1"}\n{"text": "x"}\n{\n{"prompt": "word3"}\n')
    assert regenerate(target, tokenizer, prompts, out, **SETTINGS) == 2
    reasons = [json.loads(line)["reason"] for line in open(f"{out}.failed.jsonl", encoding="utf-8")]
    assert "prompts.jsonl, line 2: Expected one of" in reasons[0] and "line 3: It is no JSON" in reasons[1]


def test_regeneration_resumes_with_what_is_missing(target, tokenizer, questions, tmp_path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    regenerate(target, tokenizer, questions, whole, **SETTINGS)
    regenerate(target, tokenizer, questions, broken, **SETTINGS)
    lines = broken.read_text().splitlines(keepends=True)
    broken.write_text("".join(lines[:2]) + lines[2][:9])
    regenerate(target, tokenizer, questions, broken, **SETTINGS, resume=True)
    assert broken.read_bytes() == whole.read_bytes()


def test_regeneration_leaves_excluded_prompts_out(target, tokenizer, questions, tmp_path):
    exclude = tmp_path / "exclude.jsonl"
    exclude.write_text('{"turns": ["word11"]}\n')
    regenerate(target, tokenizer, questions, tmp_path / "data.jsonl", **SETTINGS, exclude=exclude)
    assert set(prompts_of(load_conversations(tmp_path / "data.jsonl"))) == {q[0] for q in QUESTIONS} - {"word11"}


def test_what_cannot_be_answered_is_kept_aside_with_its_reason(target, tokenizer, tmp_path):
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{% if 'word9' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    out = tmp_path / "data.jsonl"
    texts = ["word1", "word9", "word2 " * 2100, "", "word3"]
    prompts = [[{"role": "system", "content": ""}, {"role": "user", "content": text}] for text in texts]
    assert regenerate(target, own, prompts, out, **{**SETTINGS, "batch_size": 1}) == 2
    assert sorted(prompts_of(load_conversations(out))) == ["word1", "word3"]
    lines = (tmp_path / "data.jsonl.failed.jsonl").read_text().splitlines()
    reasons = {json.loads(line)["messages"][-1]["content"]: json.loads(line)["reason"] for line in lines}
    assert "refuses a conversation" in reasons["word9"] and "Expected text in each user message" in reasons[""]
    assert "tokens, and with 8 of an answer the target would go beyond the 2048" in reasons[texts[2]]
    assert regenerate(target, tokenizer, prompts[:2], out, **{**SETTINGS, "batch_size": 1}, resume=True) == 3
    assert not (tmp_path / "data.jsonl.failed.jsonl").exists()


def test_answer_without_text_is_kept_aside(target, tokenizer, tmp_path):
    mute = copy.deepcopy(target)
    mute.generation_config.eos_token_id = list(range(len(WORDS)))
    with pytest.raises(ValueError, match="No conversation was answered; the last reason: .* An answer has no text"):
        regenerate(mute, tokenizer, [[{"role": "user", "content": "word1"}]], tmp_path / "data.jsonl", **SETTINGS)


def test_two_runs_do_not_write_to_one_file(target, tokenizer, questions, tmp_path):
    out = tmp_path / "data.jsonl"
    with (
        AnswerFile(out, "target", {}, resume=False),
        pytest.raises(ValueError, match="Another run is writing to .*data.jsonl"),
    ):
        regenerate(target, tokenizer, questions, out, **SETTINGS, resume=True)
    assert regenerate(target, tokenizer, questions, out, **SETTINGS) == 5


def test_temperature_samples_the_answers(target, tokenizer, questions, tmp_path):
    contents = []
    for name, seed, temperature in (("greedy", 5, 0.0), ("a", 5, 2.0), ("b", 5, 2.0), ("c", 6, 2.0)):
        settings = {**SETTINGS, "seed": seed, "temperature": temperature}
        regenerate(target, tokenizer, questions, tmp_path / name, **settings)
        contents.append((tmp_path / name).read_bytes())
    assert contents[1] == contents[2]
    assert len(set(contents)) == 3


def test_existing_file_is_not_overwritten(target, tokenizer, questions, tmp_path):
    out = tmp_path / "data.jsonl"
    out.write_text("precious\n")
    with pytest.raises(ValueError, match="data.jsonl exists. Continue it with resume .--resume., or choose"):
        regenerate(target, tokenizer, questions, out, **SETTINGS)
    assert out.read_text() == "precious\n"


def test_resuming_with_other_settings_is_refused(target, tokenizer, tmp_path):
    out = tmp_path / "data.jsonl"
    synthesize(target, tokenizer, 3, out, **SETTINGS)
    before = out.read_bytes()
    with pytest.raises(ValueError, match="other settings .seed: 5 before, 9 now"):
        synthesize(target, tokenizer, 6, out, **{**SETTINGS, "seed": 9}, resume=True)
    assert out.read_bytes() == before


@pytest.mark.parametrize("content", [None, "{", '{"settings": {}}', "[]"])
def test_resuming_without_provenance_is_refused(target, tokenizer, tmp_path, content):
    out, sidecar = tmp_path / "data.jsonl", tmp_path / "data.jsonl.provenance.json"
    out.write_text('{"turns": ["a"]}\n')
    if content is not None:
        sidecar.write_text(content)
    with pytest.raises(ValueError, match="Cannot resume .* is missing or unreadable"):
        synthesize(target, tokenizer, 6, out, **SETTINGS, resume=True)


@pytest.mark.parametrize("name", ["num_samples", "batch_size", "max_new_tokens", "max_prompt_tokens", "top_k"])
def test_numbers_must_be_positive(target, tokenizer, tmp_path, name):
    settings = {"num_samples": 2, **SETTINGS, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        synthesize(target, tokenizer, out_path=tmp_path / "data.jsonl", **settings)


@pytest.mark.parametrize("prompts", ["prompts.jsonl", []], ids=["file", "list"])
def test_a_limit_must_be_positive(target, tokenizer, tmp_path, prompts):
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        regenerate(target, tokenizer, prompts, tmp_path / "data.jsonl", limit=0)
    assert not list(tmp_path.iterdir())


def test_negative_temperature_is_refused(target, tokenizer, questions, tmp_path):
    with pytest.raises(ValueError, match="temperature must be 0 .greedy. or above, got -1"):
        regenerate(target, tokenizer, questions, tmp_path / "data.jsonl", **SETTINGS, temperature=-1.0)


def test_conversation_without_a_question_is_refused(target, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="Expected a user message in each conversation"):
        regenerate(target, tokenizer, [[{"role": "system", "content": "a"}]], tmp_path / "data.jsonl", **SETTINGS)


@pytest.fixture(scope="module")
def target_dir(target, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny-target"
    target.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["regenerate", *map(str, arguments)])


def test_command_synthesizes_and_regenerates(target, tokenizer, target_dir, questions, tmp_path):
    common = ("--target", target_dir, "--dtype", "float32", "--batch-size", 3, "--max-new-tokens", 8, "--seed", 5)
    by_command, by_call = tmp_path / "command.jsonl", tmp_path / "call.jsonl"
    result = run("--synthesize", 7, "--out", by_command, *common)
    assert result.exit_code == 0, result.output
    assert "7 conversations" in result.output
    synthesize(target, tokenizer, 7, by_call, **SETTINGS)
    assert by_command.read_bytes() == by_call.read_bytes()

    answers = tmp_path / "answers.jsonl"
    result = run("--prompts", questions, "--out", answers, "--exclude", by_command, *common)
    assert result.exit_code == 0, result.output
    assert len(load_conversations(answers)) == 5
    assert run("--prompts", questions, "--out", answers, *common).exit_code == 2
    assert run("--prompts", questions, "--exclude", by_command, "--out", answers, "--resume", *common).exit_code == 0


def test_command_puts_loops_aside(target_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "_MIN_CHARS", 10)
    monkeypatch.setattr(loops, "_MIN_TIMES", 1.3)
    common = ("--target", target_dir, "--dtype", "float32", "--batch-size", 3, "--max-new-tokens", 8, "--seed", 5)
    options = ("--synthesize", 20, "--out", tmp_path / "data.jsonl", "--without-loops", "--attention", "eager")
    result = run(*options, *common)
    assert result.exit_code == 0, result.output
    num_loops = len(load_conversations(tmp_path / "data.jsonl.loops.jsonl"))
    assert f"{num_loops} conversations with a loop were left out" in result.output
    assert "20 conversations" in result.output


@pytest.mark.parametrize(
    ("out", "exclude", "message"),
    [
        ("questions.jsonl", None, "exists. Continue it with resume"),
        (".", None, "is a folder. Add a file name"),
        ("new.jsonl", "none.jsonl", "does not exist"),
    ],
)
def test_command_looks_at_its_files_before_it_loads_the_target(questions, tmp_path, out, exclude, message):
    options = [] if exclude is None else ["--exclude", tmp_path / exclude]
    result = run("--target", "org/nothing", "--prompts", questions, "--out", tmp_path / out, *options)
    assert result.exit_code == 2 and message in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either --synthesize NUM or --prompts FILE.jsonl"),
        (("--synthesize", 3, "--prompts", "x.jsonl"), "either --synthesize NUM or --prompts FILE.jsonl"),
        (("--prompts", "x.jsonl", "--openings", __file__), "does not go with --prompts"),
        (
            ("--synthesize", 3, "--dtype", "int8"),
            "--dtype must be one of float32, bfloat16, float16, auto, got 'int8'",
        ),
        (("--synthesize", 3, "--attention", "none"), "attn_implementation"),
    ],
)
def test_command_reports_bad_options(target_dir, tmp_path, arguments, message):
    result = run("--target", target_dir, "--out", tmp_path / "data.jsonl", *arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("one thing after the other is said here, and not one of all these words is ever said again", False),
        ("Well: " + "it is a gene editing tool. " * 4 + "it is a ge", True),
        ("It is a gene editing tool. " * 2, False),
        ("ha " * 10, False),  # short
        ("ha " * 40, True),
        ("ha " * 40 + "and that is all there is to say", False),
        ("- 1/2 cup of Cilantro\n" * 5, True),
    ],
)
def test_a_loop_is_one_piece_said_over_and_over_at_the_end(text, expected):
    assert ends_in_loop(text) is expected


def test_answers_with_loops_are_put_aside(target, tokenizer, tmp_path, monkeypatch):
    # A random target says the same few words over and over, so half of its answers are loops by this measure.
    monkeypatch.setattr(loops, "_MIN_CHARS", 10)
    monkeypatch.setattr(loops, "_MIN_TIMES", 1.3)
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    settings = {**SETTINGS, "without_loops": True}
    assert synthesize(target, tokenizer, 20, whole, **settings) == 20
    kept, aside = load_conversations(whole), load_conversations(f"{whole}.loops.jsonl")
    assert len(kept) == 20 and aside
    assert [ends_in_loop(record["messages"][1]["content"]) for record in kept + aside] == [False] * 20 + [True] * len(
        aside
    )
    assert json.loads((tmp_path / "whole.jsonl.provenance.json").read_text())["num_loops"] == len(aside)
    # What was put aside before a stop is neither asked again nor counted twice.
    synthesize(target, tokenizer, 9, broken, **settings)
    assert synthesize(target, tokenizer, 20, broken, **settings, resume=True) == 20
    aside = load_conversations(f"{broken}.loops.jsonl")
    prompts = [*prompts_of(load_conversations(broken)), *prompts_of(aside)]
    assert len(prompts) == len(set(prompts)) == 20 + len(aside)


def test_given_prompts_may_all_end_in_loops(target, tokenizer, questions, tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "_MIN_CHARS", 1)
    monkeypatch.setattr(loops, "_MIN_TIMES", 1)
    out = tmp_path / "data.jsonl"
    for resume in (False, True):
        assert regenerate(target, tokenizer, questions, out, **SETTINGS, without_loops=True, resume=resume) == 0
        assert len(load_conversations(f"{out}.loops.jsonl")) == 5


def test_a_target_that_only_loops_is_reported(target, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "_MIN_CHARS", 1)
    monkeypatch.setattr(loops, "_MIN_TIMES", 1)
    with pytest.raises(ValueError, match="has 0 conversations, and [1-9][0-9]* with loops were put aside"):
        synthesize(target, tokenizer, 3, tmp_path / "data.jsonl", **SETTINGS, without_loops=True)
