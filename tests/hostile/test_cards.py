"""Cards show what drafters' files say, and never do what it says; what a repository knows survives a push."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM

from dspark_hf import AutoDrafter
from dspark_hf.publishing import CardFacts, add_evaluation, push_folder, write_card
from dspark_hf.publishing.cards.body import _PAPERS
from dspark_hf.publishing.cards.card import _MARK, _MARK_PATTERN, _digest
from dspark_hf.publishing.cards.markdown import code, fenced, quoted, table

EVIL = (
    "x\n\n# PWNED\n<script>PWNED</script> [PWNED](javascript:x) ![PWNED](y) | `PWNED` *PWNED* __PWNED__\n\n---\n"
    "```\n~~~\n> PWNED\n$PWNED$ </details> \\"
)


@pytest.fixture
def folder(tmp_path, tiny_drafter_dir):
    return Path(shutil.copytree(tiny_drafter_dir, tmp_path / "drafter"))


def edit(path, **fields):
    path.parent.mkdir(exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | fields))


def parsed(text):
    """A card below its front matter as CommonMark with tables reads it: blocks, and what is inside them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text.split("\n---\n", 1)[1])
    return [one for token in tokens for one in (token, *(token.children or ()))]


def test_what_is_quoted_stays_text(folder):
    edit(folder / "config.json", target_name_or_path=EVIL)
    record = {"command": EVIL, "data": [EVIL], "arguments": {EVIL: EVIL}, "versions": {EVIL: EVIL}, "other": EVIL}
    edit(folder / "training.json", **record, held_out={EVIL: 1.5})
    provenance = {"command": EVIL, "commit": EVIL, "machine": {"device_name": EVIL, "threads": EVIL}}
    edit(folder / "evaluations" / "e | #.json", tau=1.5, data=EVIL, dtype=EVIL, provenance=provenance)
    edit(folder / "adapter_config.json", base_model_name_or_path=EVIL, peft_type=EVIL)
    shutil.copy(folder / "model.safetensors", folder / "adapter_model.safetensors")
    write_card(folder, CardFacts("me/x", license=EVIL, tags=(EVIL,), datasets=(EVIL,)))
    text = (folder / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.license, data.tags[-1], data.datasets) == (EVIL, EVIL, [EVIL])
    tokens = parsed(text)
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert headings == ["x", "Use", "Serve", "How it was trained", "What it reaches"]
    assert [token.content for token in tokens if token.type.startswith("html")] == [text.splitlines()[-1] + "\n"]
    links = [
        token.attrs.get("href") or token.attrs.get("src") for token in tokens if token.type in ("link_open", "image")
    ]
    assert links == [_PAPERS["DSpark"]]
    assert {token.type for token in tokens} & {
        "hr",
        "em_open",
        "strong_open",
        "blockquote_open",
        "lheading_open",
    } == set()
    fences = [token.content for token in tokens if token.type == "fence"]
    assert len(fences) == 2 and fences[1].split() == EVIL.split()
    # Two tables of two and of three columns, and one of what was held out.
    cells = [token for token in tokens if token.type in ("tr_open", "th_open", "td_open")]
    rows = "".join("r" if token.type == "tr_open" else "c" for token in cells).split("r")[1:]
    assert rows == ["cc"] * 3 + ["ccc"] * 2 + ["c"] * 2
    # Every word is there to be read.
    assert sum(token.content.count("PWNED") for token in tokens if token.type in ("text", "code_inline")) > 30


def test_pieces_of_markdown():
    assert quoted("a_b <i> & [x](y) `c` *d* | _e_") == "a_b &lt;i&gt; &amp; \\[x\\](y) \\`c\\` \\*d\\* \\| \\_e\\_"
    assert quoted("mt-bench.jsonl") == "mt-bench.jsonl"
    assert quoted(code("a_b")) == "`a_b`" and code("a`b``c") == "```a`b``c```" and code("`a`") == "`` `a` ``"
    assert fenced("```\nx\n````", "bash") == "`````bash\n```\nx\n````\n`````"
    assert table(["a", "b"], [["x|y", code("p|q")]]) == "| a | b |\n| --- | --- |\n| x\\|y | `p\\|q` |"


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"model_type": EVIL}, "model_type must be a word"),
        ("config.json", {"architectures": [EVIL]}, "architectures must be words"),
        ("config.json", {"markov_head_type": "x"}, "markov_head_type must be one of vanilla, gated, rnn, domino, got"),
        ("config.json", {"block_size": "7"}, "block_size must be a whole number, got '7'"),
        ("config.json", {"target_layer_ids": 3}, "target_layer_ids must be whole numbers"),
        ("config.json", {"target_name_or_path": [1]}, "target_name_or_path must be text"),
        ("training.json", {"data": 7}, "data must be names, got 7"),
        ("training.json", {"command": ["a"]}, "command must be text"),
        ("training.json", {"held_out": {"tau": float("nan")}}, "held_out must be names and numbers"),
        ("calibration.json", {"temperatures": [1.0, 1.0, 1.0, float("nan")]}, "4 numbers above 0"),
        ("evaluations/e.json", {"tau": float("nan")}, "holds no tau"),
        ("evaluations/e.json", {"tau": float("inf")}, "holds no tau"),
        ("evaluations/e.json", {"tau": "x"}, "holds no tau"),
        ("evaluations/e.json", {"tau": True}, "holds no tau"),
        ("evaluations/e.json", {}, "holds no tau"),
        ("evaluations/e.json", {"tau": 1, "settings": []}, "settings must be keys and values"),
        ("evaluations/e.json", {"tau": 1, "settings": {"temperature": "x"}}, "settings.temperature must be a number"),
        ("evaluations/e.json", {"tau": 1, "ratio": {"median": "x"}}, "ratio.median must be a number"),
        ("evaluations/e.json", {"tau": 1, "accepted_per_slot": ["x"]}, "accepted_per_slot must be numbers"),
        ("evaluations/e.json", {"tau": 1, "reliability": [{}]}, "reliability must be bins"),
        ("evaluations/e.json", {"tau": 1, "provenance": {"machine": 3}}, "provenance.machine must be keys and values"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused(folder, tmp_path, file, fields, message):
    edit(folder / file, **fields)
    with pytest.raises(ValueError, match=f"{file}.*{message}"):
        write_card(folder)
    if file.startswith("evaluations"):
        shutil.rmtree(folder / "evaluations")
        edit(tmp_path / "given" / "e.json", **fields)
        with pytest.raises(ValueError, match=message):
            add_evaluation(folder, tmp_path / "given" / "e.json")
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b/c", "a b", "x\n# y", "http://evil", '"); import os; ("'])
def test_names_of_repositories_are_names(folder, name):
    for facts in ({"repo_id": name}, {"base_model": name}):
        with pytest.raises(ValueError, match="must be named as on the Hub, OWNER/NAME"):
            CardFacts(**facts)
    edit(folder / "config.json", target_name_or_path=name)
    write_card(folder)
    assert "base_model:" not in (folder / "README.md").read_text()


def test_a_push_keeps_what_the_card_says(hub, folder, dspark, tmp_path):
    edit(tmp_path / "given" / "chat.json", tau=2.5, accepted_per_slot=[0.9])
    edit(folder / "training.json", steps=7)
    known = ["--base-model", "org/Model", "--license", "gemma", "--dataset", "org/chats", "--tag", "chat"]
    first = dspark("push", folder, "org/x", "--evaluation", tmp_path / "given" / "chat.json", *known, "--yes")
    assert first.code == 0, first.err
    before = hub.files("org/x")
    for part in (b"base_model: org/Model", b"license: gemma", b"- org/chats", b"- chat\n", b'target = "org/Model"',
                 b"| chat | 2.50 |", b"| `steps` | 7 |"):  # fmt: skip
        assert part in before["README.md"]
    # The same weights, of which the folder knows as much or less; a trainer; a model in memory.
    assert dspark("push", folder, "org/x", "--yes").code == 0
    assert hub.files("org/x") == before
    shutil.rmtree(folder / "evaluations")
    (folder / "training.json").unlink()
    assert dspark("push", folder, "org/x", "--yes").code == 0
    AutoDrafter.from_pretrained(folder).push_to_hub("org/x")
    assert hub.files("org/x") == before
    # What is told otherwise changes, and nothing else.
    assert dspark("push", folder, "org/x", "--license", "mit", "--tag", "code", "--yes").code == 0
    assert hub.files("org/x")["README.md"] != before["README.md"]
    data = ModelCard(hub.files("org/x")["README.md"].decode()).data
    assert (data.base_model, data.license, data.datasets) == ("org/Model", "mit", ["org/chats"])
    assert data.tags[3:] == ["code"] and data.eval_results[0].metric_value == 2.5
    # Other weights lose figures, not words.
    drafter = AutoDrafter.from_pretrained(folder)
    drafter.fc.weight.data.zero_()
    drafter.push_to_hub("org/x")
    text = hub.files("org/x")["README.md"].decode()
    assert "base_model: org/Model" in text and "license: mit" in text and "2.50" not in text
    assert dspark("push", folder, "org/x", "--overwrite-card", "--yes").code == 0
    assert ModelCard(hub.files("org/x")["README.md"].decode()).data.license is None


ODD = [None, 7, True, 0.5, "x", "", [], [7, None, "x"], [["x"]], {}, {"a": ["x"]}, "a\nb", ["<script>"]]


@pytest.mark.parametrize("field", ["license", "datasets", "tags", "base_model", "model-index", "library_name"])
def test_front_matter_of_any_kind_ends_in_a_card(folder, field):
    """The mark of a generated card can be computed by anybody."""
    write_card(folder, CardFacts("me/x", "org/Model", "mit", ("org/chats",), ("chat",)))
    text = _MARK_PATTERN.sub("", (folder / "README.md").read_text())
    head, body = text.split("---\n", 2)[1:]
    for value in ODD:
        forged = f"---\n{yaml.safe_dump({**yaml.safe_load(head), field: value})}---\n{body}"
        (folder / "README.md").write_text(f"{forged}\n{_MARK.format(digest=_digest(forged))}\n")
        assert write_card(folder)
        data = ModelCard((folder / "README.md").read_text()).data
        assert isinstance(data.license, str | None), value
        for names in (data.tags, data.datasets or []):
            assert all(isinstance(name, str) for name in names), value
        if field == "datasets" and value == "x":
            assert data.datasets == ["x"]  # as the Hub takes it, too


@pytest.mark.parametrize(
    "head", ["[1]", "a: [", "a: !!python/object:os.x {}", "[" * 3000, "a: &a [*a]", "a: 2001-99-99", "? {a: 1}\n: 2",
             "a: b\na: c", ""], ids=lambda head: head[:12]
)  # fmt: skip
def test_front_matter_that_is_none(folder, head):
    forged = f"---\n{head}\n---\n\nWords.\n"
    (folder / "README.md").write_text(f"{forged}\n{_MARK.format(digest=_digest(forged))}\n")
    try:
        assert write_card(folder)
    except ValueError as error:
        assert type(error) is ValueError and "README.md" in str(error)


def test_a_drafter_for_another_target_does_not_inherit_its_name(hub, folder, dspark):
    edit(folder / "config.json", target_name_or_path="org/First")
    assert dspark("push", folder, "org/x", "--license", "mit", "--yes").code == 0
    edit(folder / "config.json", target_name_or_path="org/Second")
    assert dspark("push", folder, "org/x", "--yes").code == 0
    data = ModelCard(hub.files("org/x")["README.md"].decode()).data
    assert (data.base_model, data.license) == ("org/Second", "mit")


def test_a_base_model_must_fit(hub, folder, dspark, tiny_target_dir, caplog):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    target.push_to_hub("org/right")
    for name, field in (("hidden size", "hidden_size"), ("vocabulary", "vocab_size")):
        config = target.config.to_dict() | {field: 64}
        HfApi().create_repo("org/wrong", exist_ok=True)
        HfApi().upload_file(
            path_or_fileobj=json.dumps(config).encode(), path_in_repo="config.json", repo_id="org/wrong"
        )
        for how in ("--yes", "--dry-run"):
            outcome = dspark("push", folder, "org/x", "--base-model", "org/wrong", how)
            assert outcome.code == 2 and f"org/wrong cannot be the base model: its {name} is 64" in outcome.err
    with pytest.raises(ValueError, match="cannot be the base model"):
        push_folder(folder, "org/x", facts=CardFacts(base_model="org/wrong"))
    assert ("model", "org/x") not in hub.repos
    assert dspark("push", folder, "org/x", "--base-model", "org/right", "--yes").code == 0
    assert not caplog.records
    assert dspark("push", folder, "org/x", "--base-model", "org/nowhere", "--yes").code == 0
    assert "org/nowhere was not checked to be the target" in caplog.text


def test_a_hub_that_does_not_answer_is_one_line(hub, folder, dspark, monkeypatch):
    hub.stop()
    outcome = dspark("push", folder, "org/x", "--yes")
    assert outcome.code == 2 and f"The Hub ({hub.url}) did not answer, so org/x is not pushed" in outcome.err
    assert "HF_HUB_OFFLINE" in outcome.err and "ConnectError" in outcome.err
    with pytest.raises(ValueError, match="did not answer, so org/x is not pushed"):
        push_folder(folder, "org/x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    outcome = dspark("push", folder, "org/x", "--yes")
    assert outcome.code == 2 and "org/x cannot be pushed while HF_HUB_OFFLINE is set" in outcome.err
