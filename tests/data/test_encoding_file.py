"""Chats rendered by a file of the target's repository: consent, what is fetched, prompts, masks, bad files."""

import copy
import pickle
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from transformers import AutoTokenizer, pipeline

from dspark_hf.data.chat import encode_conversation, prompt_ids, render
from dspark_hf.data.encoding_file import EncodingFile, load_tokenizer
from dspark_hf.data.regeneration.answers import Answerer
from dspark_hf.data.rows import encode_row

sys.path.append(str(Path(__file__).parent))
from encoders import EARLIER_SOURCE, SOURCE, by_hand, without_template, write_encoding  # noqa: E402

ASKED = {"role": "user", "content": "Why?"}
TWO_TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello.", "reasoning_content": "A greeting."},
    ASKED,
    {"role": "assistant", "content": "Because é.", "reasoning_content": "Hmm."},
]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": "é"}}}


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    """A repository without a template, with a file that renders chats."""
    without_template(tiny_tokenizer).save_pretrained(tmp_path / "model")
    return write_encoding(tmp_path / "model")


@pytest.fixture
def tokenizer(folder):
    return load_tokenizer(folder, trust_remote_code=True)


def plain(messages):
    return [{name: message[name] for name in ("role", "content")} for message in messages]


def test_the_file_runs_only_with_the_users_word(folder):
    write_encoding(folder, "raise SystemExit('it ran')")
    with pytest.raises(ValueError, match=r"encoding/encoding_dsv4.py, which runs only if you allow it. No template "):
        load_tokenizer(folder)
    with pytest.raises(ValueError, match="cannot be run: SystemExit: it ran"):
        load_tokenizer(folder, trust_remote_code=True)
    write_encoding(folder)
    assert prompt_ids(load_tokenizer(folder, trust_remote_code=True), [ASKED])
    assert not list(folder.rglob("__pycache__"))


def test_whoever_loads_the_tokenizer_otherwise_is_told_too(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for use in (lambda: prompt_ids(tokenizer, "Why?"), lambda: encode_conversation(tokenizer, plain(TWO_TURNS))):
        with pytest.raises(ValueError, match="No template is guessed.*--trust-remote-code"):
            use()


def test_a_template_counts_more(folder, tiny_tokenizer):
    tokenizer = load_tokenizer(folder, trust_remote_code=True)
    tokenizer.chat_template = tiny_tokenizer.chat_template
    assert render(tokenizer, [ASKED], add_generation_prompt=True) == "u:Why?\na:"
    tokenizer.save_pretrained(folder)
    assert not hasattr(load_tokenizer(folder), "encoding_file")


def test_from_the_hub_that_file_alone_comes_at_the_revision_that_was_asked_for(folder, hub):
    api = HfApi()
    api.create_repo("org/Model")
    api.upload_folder(repo_id="org/Model", folder_path=folder)
    api.create_tag("org/Model", tag="v1")
    write_encoding(folder, SOURCE.replace("<user>", "<USER>"))
    (folder / "inference").mkdir()
    (folder / "inference" / "model.py").write_text("raise SystemExit")
    (folder / "model.safetensors").write_bytes(b"weights")
    api.upload_folder(repo_id="org/Model", folder_path=folder)
    with pytest.raises(ValueError, match=r"org/Model has no chat template.*encoding_dsv4.py"):
        load_tokenizer("org/Model")
    hub.requests.clear()
    tokenizer = load_tokenizer("org/Model", trust_remote_code=True, revision="v1")
    assert render(tokenizer, [ASKED]) == "<bos><user>Why?<assistant></think>"
    assert render(load_tokenizer("org/Model", trust_remote_code=True), [ASKED]).startswith("<bos><USER>")
    fetched = {path.split("/resolve/")[1].split("/", 1)[1] for _, path, _ in hub.requests if "/resolve/" in path}
    assert "encoding/encoding_dsv4.py" in fetched and not {"inference/model.py", "model.safetensors"} & fetched


def test_a_repository_of_the_hub_without_such_a_file(tmp_path, tiny_tokenizer, hub):
    without_template(tiny_tokenizer).save_pretrained(tmp_path)
    HfApi().create_repo("org/Base")
    HfApi().upload_folder(repo_id="org/Base", folder_path=tmp_path)
    tokenizer = load_tokenizer("org/Base")
    assert prompt_ids(tokenizer, "Why?") == tokenizer("Why?")["input_ids"]


@pytest.mark.parametrize(
    ("options", "before", "opening"),
    [
        ({}, "", "</think>"),
        ({"thinking": False}, "", "</think>"),
        ({"thinking": False, "reasoning_effort": "max"}, "", "</think>"),
        ({"thinking": True}, "", "<think>"),
        ({"thinking": True, "reasoning_effort": "max"}, "Think a lot. ", "<think>"),
        ({"thinking": True, "reasoning_effort": "high"}, "Think. ", "<think>"),
    ],
)
def test_prompts(folder, tokenizer, options, before, opening):
    expected = by_hand(tokenizer, f"<bos>{before}<user>Why?<assistant>{opening}")["input_ids"]
    assert prompt_ids(tokenizer, [ASKED], **options) == expected
    write_encoding(folder, EARLIER_SOURCE)
    earlier = prompt_ids(load_tokenizer(folder, trust_remote_code=True), [ASKED], **options)
    assert (earlier == expected) == (before != "Think. ")


def test_masks_equal_those_by_hand(tokenizer):
    chat = encode_conversation(tokenizer, plain(TWO_TURNS))
    assert chat == by_hand(tokenizer, "<bos>Be kind.<user>Hi<assistant></think>", ["Hello.<eos>"],
                           "<user>Why?<assistant></think>", ["Because é.<eos>"])  # fmt: skip
    # Earlier thoughts are not shown; where the last answer has some, the target thought.
    thinking = encode_conversation(tokenizer, TWO_TURNS)
    assert thinking == by_hand(tokenizer, "<bos>Be kind.<user>Hi<assistant></think>", ["Hello.<eos>"],
                               "<user>Why?<assistant><think>", ["Hmm.</think>Because é.<eos>"])  # fmt: skip
    assert encode_conversation(tokenizer, TWO_TURNS, thinking=True, reasoning_effort="high") == by_hand(
        tokenizer, "<bos>Think. Be kind.<user>Hi<assistant></think>", ["Hello.<eos>"], "<user>Why?<assistant><think>",
        ["Hmm.</think>Because é.<eos>"])  # fmt: skip
    cut = encode_conversation(
        tokenizer, [ASKED, {"role": "assistant", "content": "Hm"}], complete=False, thinking=True
    )
    assert cut == by_hand(tokenizer, "<bos><user>Why?<assistant><think>", ["Hm"])


@pytest.mark.parametrize(
    ("content", "written"), [("Hmm.</think>So.", "Hmm.</think>So.<eos>"), ("So.", "</think>So.<eos>")]
)
def test_thoughts_within_the_text_are_closed_once(tokenizer, content, written):
    messages = [ASKED, {"role": "assistant", "content": content}]
    encoded = encode_conversation(tokenizer, messages, thinking=True)
    assert encoded == by_hand(tokenizer, "<bos><user>Why?<assistant><think>", [written])


def test_masks_with_tools(tokenizer):
    messages = [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Look."},
                {"role": "tool", "content": "42"}, {"role": "assistant", "content": "42."}]  # fmt: skip
    encoded = encode_conversation(tokenizer, messages, tools=[TOOL], thinking=True)
    assert encoded == by_hand(tokenizer, "<bos>look<user>Why?<assistant><think>",
                              ['Look.</think><call>look{"at": "é"}</call><eos>'],
                              "<user><result>42</result><assistant><think>", ["</think>42.<eos>"])  # fmt: skip
    assert messages[1]["tool_calls"] == [CALL]


def test_a_row_brings_how_it_was_rendered(tokenizer):
    row = {"messages": [ASKED, {"role": "assistant", "content": "Hm.</think>So."}], "thinking": True,
           "reasoning_effort": "max"}  # fmt: skip
    expected = by_hand(tokenizer, "<bos>Think a lot. <user>Why?<assistant><think>", ["Hm.</think>So.<eos>"])
    assert encode_row(row, tokenizer) == expected
    with pytest.raises(ValueError, match="Expected 'reasoning_effort' to be text or absent, got 3"):
        encode_row(row | {"reasoning_effort": 3}, tokenizer)


def test_what_the_target_writes_is_learned_as_it_wrote_it(tokenizer, monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    target = LlamaForCausalLM(LlamaConfig(vocab_size=270, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                          num_attention_heads=1, eos_token_id=257))  # fmt: skip
    asked = []

    def write(target, prompts, *_, **__):
        asked.extend(tokenizer.decode(prompt) for prompt in prompts)
        return [(tokenizer("Hm.</think>So.", add_special_tokens=False)["input_ids"], 257) for _ in prompts]

    monkeypatch.setattr("dspark_hf.data.regeneration.answers.write_on", write)
    answerer = Answerer(target, tokenizer, max_new_tokens=9, thinking=True, reasoning_effort="max")
    (record,) = answerer.answer([[ASKED, {"role": "user", "content": "And?"}]], seed=0)
    assert record["thinking"] is True and record["reasoning_effort"] == "max"
    assert asked == [
        "<bos>Think a lot. <user>Why?<assistant><think>",
        "<bos>Think a lot. <user>Why?<assistant></think>So.<eos><user>And?<assistant><think>",
    ]
    assert encode_row(record, tokenizer) == by_hand(tokenizer, "<bos>Think a lot. <user>Why?<assistant></think>",
                                                    ["So.<eos>"], "<user>And?<assistant><think>",
                                                    ["Hm.</think>So.<eos>"])  # fmt: skip


def test_a_tokenizer_may_be_copied_and_sent_to_workers(tokenizer):
    for other in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert prompt_ids(other, [ASKED]) == prompt_ids(tokenizer, [ASKED])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def encode_messages(:", r"file of .*model \(encoding/encoding_dsv4.py\) cannot be run: SyntaxError"),
        ("import absent_package", "cannot be run: ModuleNotFoundError: .*absent_package"),
        ("x = 1", r"has no function encode_messages\(messages, thinking_mode\). Fetch it again, or give"),
        ("encode_messages = 3", "has no function encode_messages"),
        ("def encode_messages(messages, thinking_mode): return [1]", "gives list instead of text. Fetch it again"),
        ("def encode_messages(messages, thinking_mode): raise KeyError('role')",
         r"refuses a conversation of roles \['user'\]: KeyError: 'role'. Leave such"),
        ("def encode_messages(messages): return ''", "refuses a conversation .*TypeError"),
    ],
)  # fmt: skip
def test_bad_files(folder, source, message):
    write_encoding(folder, source)
    with pytest.raises(ValueError, match=message):
        prompt_ids(load_tokenizer(folder, trust_remote_code=True), [ASKED])


@pytest.mark.parametrize(
    "raised", ["KeyboardInterrupt('stop')", "SystemExit(3)", "GeneratorExit()", "type('Odd', (BaseException,), {})()"]
)
@pytest.mark.parametrize("thread", [False, True])
def test_whatever_the_file_raises_is_told_as_its_own(folder, raised, thread):
    def use(source, message):
        write_encoding(folder, source)
        with pytest.raises(ValueError, match=message) as caught:
            prompt_ids(load_tokenizer(folder, trust_remote_code=True), [ASKED])
        assert type(caught.value) is ValueError

    def both():
        use(f"raise {raised}", r"encoding_dsv4.py\) cannot be run: \w+")
        use(f"def encode_messages(messages, thinking_mode): raise {raised}", r"encoding_dsv4.py\) refuses a conv")

    before = signal.getsignal(signal.SIGINT)
    if thread:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(both).result()
    else:
        both()
    assert signal.getsignal(signal.SIGINT) is before


def test_errors_that_cannot_be_shown_and_callables_that_do_not_tell(folder):
    odd = "class Odd(Exception):\n    def __str__(self): raise SystemExit\n"
    write_encoding(folder, f"{odd}def encode_messages(messages, thinking_mode): raise Odd")
    with pytest.raises(ValueError, match="refuses a conversation of roles .*: Odd. Leave such"):
        prompt_ids(load_tokenizer(folder, trust_remote_code=True), [ASKED])
    write_encoding(folder, "encode_messages = dict")
    with pytest.raises(ValueError, match="takes no reasoning_effort, got 'high'"):
        prompt_ids(load_tokenizer(folder, trust_remote_code=True), [ASKED], reasoning_effort="high")


def test_the_users_own_interrupt_stays_one(folder):
    # As a terminal sends it while the file runs.
    write_encoding(folder, "import signal\ndef encode_messages(messages, thinking_mode):\n    "
                           "signal.raise_signal(signal.SIGINT)")  # fmt: skip
    tokenizer = load_tokenizer(folder, trust_remote_code=True)
    # A shell's background jobs ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            prompt_ids(tokenizer, [ASKED])
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_pipeline_and_an_auto_tokenizer_of_the_hub_name_the_way(folder, hub, tiny_target_dir):
    pipe = pipeline("text-generation", model=tiny_target_dir, tokenizer=AutoTokenizer.from_pretrained(folder))
    told = rf"load_tokenizer\('{folder}', trust_remote_code=True\).*prompt_ids"
    with pytest.raises(ValueError, match=f"its chats are rendered by code of the repository.*{told}"):
        pipe([ASKED], max_new_tokens=1)
    HfApi().create_repo("org/Model")
    HfApi().upload_folder(repo_id="org/Model", folder_path=folder)
    tokenizer = AutoTokenizer.from_pretrained("org/Model")
    with pytest.raises(ValueError, match=r"'org/Model' has no chat template; some repositories' chats"):
        tokenizer.apply_chat_template([ASKED])
    with pytest.raises(ValueError, match=r"AutoTokenizer does not fetch it: .*load_tokenizer\('org/Model', trust"):
        encode_conversation(tokenizer, plain(TWO_TURNS))
    for path in (folder / "encoding").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="^Cannot use chat template functions"):
        AutoTokenizer.from_pretrained(folder).apply_chat_template([ASKED])


def test_what_the_file_does_not_know_is_refused(folder, tokenizer):
    with pytest.raises(ValueError, match="and reasoning_effort='huge': AssertionError: unknown effort huge"):
        prompt_ids(tokenizer, [ASKED], thinking=True, reasoning_effort="huge")
    write_encoding(folder, "def encode_messages(messages, thinking_mode): return 'text'")
    tokenizer = load_tokenizer(folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="takes no reasoning_effort, got 'high'. Leave it out"):
        prompt_ids(tokenizer, [ASKED], reasoning_effort="high")
    write_encoding(folder, name="encoding_other.py")
    with pytest.raises(ValueError, match=r"\['encoding/encoding_dsv4.py', 'encoding/encoding_other.py'\], and which"):
        load_tokenizer(folder, trust_remote_code=True)


def test_another_file_is_another_template_of_a_cache(folder, tokenizer):
    from dspark_hf.data.cache.manifest import template_digest

    before = template_digest(tokenizer)
    write_encoding(folder, EARLIER_SOURCE)
    after = template_digest(load_tokenizer(folder, trust_remote_code=True))
    assert before == EncodingFile(write_encoding(folder) / "encoding" / "encoding_dsv4.py", "x").digest != after
