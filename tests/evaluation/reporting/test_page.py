"""The page of a run: what it holds, that it needs nothing else, and that a browser shows it."""

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from dspark_hf import AutoDrafter
from dspark_hf.cli.evaluation.tables import show_tables
from dspark_hf.evaluation import (
    EvaluationSettings,
    LoadedTask,
    Question,
    RunFolder,
    drafter_way,
    evaluate,
    lookup_way,
    plain_way,
)
from dspark_hf.evaluation.reporting.charts import all_charts
from dspark_hf.evaluation.reporting.comparison import differences_of_runs, side_by_side
from dspark_hf.evaluation.reporting.explorer import explorer_data
from dspark_hf.evaluation.reporting.page import page, write_report
from dspark_hf.evaluation.reporting.tables import all_tables, conditions, headline

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TEXTS = ("Count <b>now</b>.", "Say </script> twice.", "abcabcabcabcabcabcabcabc")


@pytest.fixture(scope="module")
def run(tiny_target_dir, tiny_drafter_dir, tiny_tokenizer, tmp_path_factory):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir, dtype=torch.float32).eval()
    drafter = AutoDrafter.from_pretrained(tiny_drafter_dir).eval().bind(target)
    questions = [Question(index, [[{"role": "user", "content": text}]]) for index, text in enumerate(TEXTS)]
    tasks = [LoadedTask("chat", questions, 9), LoadedTask("other", questions[:2], 2)]
    out = tmp_path_factory.mktemp("runs") / "first"
    settings = EvaluationSettings(max_new_tokens=20, temperatures=(0.0, 1.0), batch_sizes=(1, 2))
    ways = [plain_way(), drafter_way("tiny", drafter), drafter_way("tiny", drafter, "alone"), lookup_way(3)]
    evaluate(target, tiny_tokenizer, tasks, ways, settings, out)
    return out


class Outline(HTMLParser):
    """Tags with their attributes, and text by the element it is in."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data))


def test_every_table_says_what_it_depends_on(run):
    summary = RunFolder(run).summary()
    tables = all_tables(summary)
    assert [table.title for table in tables] == [
        "Results",
        "Tokens per round",
        "Differences of tau",
        "Slots",
        "Confidence",
        "Time and memory",
    ]
    for table in tables:
        assert any("Baseline: plain generate(), dynamic cache, float32. Prompts: chat template" in one and
                   "thinking as the template has it" in one for one in table.notes)  # fmt: skip
        assert all(len(row) == len(table.columns) for row in table.rows)
    rows = headline(summary).rows
    assert [row[0] for row in rows[:4]] == ["chat (3 of 9)"] * 4
    assert {row[0] for row in rows} == {"chat (3 of 9)", "other", "all tasks (5 prompts)"}
    lines = conditions(summary)
    assert any("chat 3 of 9 prompts" in line for line in lines)
    assert any("Asked: chat (3 prompts), other (2 prompts)." in line for line in lines)
    facts = summary["made_with"]["machine"] | {"device_name": "A processor", "threads": 1, "cpu_count": 2}
    other = {**summary, "made_with": {**summary["made_with"], "machine": facts}}
    assert "Machine: A processor, 1 thread of 2 cores." in conditions(other)
    (slots,) = [table for table in tables if table.title == "Slots"]
    assert {row[slots.columns.index("batch")] for row in slots.rows} == {"1"}
    assert slots.notes[0].startswith("Of the slots that were verified.")


def test_pictures_tell_their_lines_apart(run):
    summary = RunFolder(run).summary()
    charts = all_charts({name: summary for name in ("a", "b")})
    for name, (_, figure) in charts.items():
        axes, (legend,) = figure.axes[0], figure.legends
        labels = [text.get_text() for text in legend.get_texts()]
        assert len(set(labels)) == len(labels)
        # Only in one picture batch sizes are an axis.
        assert all(", batch 1" in label for label in labels) is (name != "throughput")
        figure.canvas.draw()
        # No line is hidden behind what explains it.
        assert legend.get_window_extent().y1 <= axes.get_window_extent().y0
    bars = charts["tau"][1].axes[0].containers
    looks = {(one.patches[0].get_facecolor(), one.patches[0].get_hatch()) for one in bars if hasattr(one, "patches")}
    assert len(looks) == len(charts["tau"][1].legends[0].get_texts()) > 8
    lines = charts["acceptance"][1].axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(lines) == 6
    axes = charts["throughput"][1].axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2"]


def test_a_way_that_sits_out_is_told_below_the_table(run):
    summary = RunFolder(run).summary()
    told = "prompt lookup (3) has no rows at batch 2: it takes one prompt at a time."
    for table in all_tables(summary):
        if table.title in ("Results", "Tokens per round", "Time and memory"):
            assert table.notes[1 if table.title != "Time and memory" else 2 :] == [told]
    rows = [row for row in summary["rows"] if row["temperature"] == 0 or row["way"] != "tiny"]
    summary["made_with"]["ways"]["tiny"]["kind"] = "synthetic"
    assert "tiny has no rows at T 1: it takes greedy decoding only." in headline({**summary, "rows": rows}).notes


def test_the_page_needs_nothing_else(run, tmp_path):
    written = write_report([run], tmp_path / "report.html")
    assert [path.name for path in written] == ["report.html", "tau.png", "acceptance.png", "reliability.png",
                                               "thresholds.png", "throughput.png"]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])
    text = written[0].read_text()
    outline = Outline(text)
    addresses = [value for _, attrs in outline.tags for name, value in attrs.items() if name in ("src", "href")]
    # Marks inside pictures are the page's own.
    assert [address for address in addresses if not address.startswith("#")] == []
    assert [tag for tag, _ in outline.tags if tag in ("link", "img", "iframe")] == []
    assert "url(http" not in text and "@import" not in text
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in outline.tags
    assert "prefers-color-scheme: dark" in text and "currentColor" in text
    assert sum(tag == "svg" for tag, _ in outline.tags) == 5
    again = write_report([run], tmp_path / "again.html")
    assert again[0].read_text() == text
    assert [path.read_bytes() for path in again[1:]] == [path.read_bytes() for path in written[1:]]


def test_text_of_models_stays_text(run, tmp_path):
    _, calls, _ = RunFolder(run).read()
    evil = dict.fromkeys(RunFolder(run).tokens(), "</script><img src=x onerror=alert(1)>")
    answers = explorer_data("first", calls, evil, 1)
    text = page({"first": RunFolder(run).summary()}, [], answers)
    assert "<img" not in text and text.count("</script>") == 2
    found = re.search(r'<script type="application/json" id="answers">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(found) == answers


def test_the_explorer_has_every_token_and_round(run):
    folder = RunFolder(run)
    _, calls, _ = folder.read()
    # Two tasks, two temperatures, two ways with rounds.
    assert len(explorer_data("first", calls, folder.tokens(), per_task=1)) == 8
    answers = explorer_data("first", calls, folder.tokens(), per_task=9)
    assert {one["run"] for one in answers} == {"first"}
    for one in answers:
        emitted = [sum(token[2] == place for token in one["tokens"]) for place in range(len(one["rounds"]))]
        assert one["tokens"][0][1:] == [None, None]
        for count, place in zip(emitted, one["rounds"], strict=True):
            assert count <= place["emitted"] and len(place["drafts"]) == place["verified"]
        for text, source, place in one["tokens"][1:]:
            own = one["rounds"][place]
            assert source in ("target", own["source"]) and isinstance(text, str)
    sources = {token[1] for one in answers for token in one["tokens"]}
    assert {"target", "lookup"} <= sources


def test_runs_that_differ_are_labelled(run, tmp_path):
    summary = RunFolder(run).summary()
    assert differences_of_runs({"a": summary, "b": summary}) == []
    other = json.loads(json.dumps(summary))
    other["made_with"] |= {"dtype": "bfloat16", "template": None, "commit": "other"}
    other["made_with"]["versions"]["torch"] = "9.9"
    other["made_with"]["machine"]["device_name"] = "another processor"
    other["made_with"]["tasks"][0]["digest"] = "0" * 16
    summaries = {"a": summary, "b": other}
    told = " ".join(differences_of_runs(summaries))
    for what in ("dtype (a: float32; b: bfloat16)", "prompting", "commit", "version of torch", "machine (device_name)",
                 "prompts of chat"):  # fmt: skip
        assert f"The runs differ in {what}" in told
    table = side_by_side(summaries)
    assert {"tau, a", "tau, b", "speed, a", "speed, b"} <= set(table.columns)
    assert table.notes[0].startswith("The runs differ in")
    assert len(set(table.notes)) == len(table.notes)
    text = page(summaries, [], [])
    assert text.count("The runs differ in dtype") == 1
    assert "These runs cannot be compared as they are." in text
    assert "cannot be compared" not in page({"a": summary, "b": summary}, [], [])


def test_a_run_that_is_not_whole_is_told_beside_others(run):
    summary = RunFolder(run).summary()
    summaries = {"a": summary, "b": {**summary, "num_missing": 2}}
    assert side_by_side(summaries).notes[0] == "b is not whole: its figures are of what is there so far."
    assert len([note for note in side_by_side({"a": summary, "b": summary}).notes if "Baseline" in note]) == 1
    other = json.loads(json.dumps(summary))
    other["made_with"]["ways"]["tiny"]["weights"] = "0" * 16
    assert any(note.startswith("tiny has other weights in each run (a: ") and note.endswith(f"b: {'0' * 16}).")
               for note in side_by_side({"a": summary, "b": other}).notes)  # fmt: skip


def test_lines_below_tables_on_a_terminal_are_there_once(run):
    summary, written = RunFolder(run).summary(), io.StringIO()
    show_tables(Console(file=written, width=300), [*all_tables(summary)], [*conditions(summary), *conditions(summary)])
    lines = [line for line in written.getvalue().splitlines() if line.rstrip().endswith(".")]
    assert len(lines) == len(set(lines)) and any("Baseline: plain generate()" in line for line in lines)


def test_runs_need_names_of_their_own(run, tmp_path, monkeypatch):
    monkeypatch.setattr("dspark_hf.evaluation.reporting.page.all_charts", lambda summaries: {})
    shutil.copytree(run, tmp_path / "first")
    other = tmp_path / "first"
    with pytest.raises(ValueError, match=f"Two runs are called 'first': .* Give one another name: NAME={other}"):
        write_report([run, other], tmp_path / "report.html")
    page = write_report([f"old={run}", other], tmp_path / "report.html")[0].read_text()
    assert "<title>old, first</title>" in page
    with pytest.raises(ValueError, match="A report needs a run"):
        write_report([], tmp_path / "report.html")
    for out in (tmp_path, tmp_path / "report", run / "records-0.jsonl", run / "summary.json"):
        with pytest.raises(ValueError, match="needs the name of an HTML file, such as .*.html, got"):
            write_report([run], out)


def shown(path, tmp_path, *, width, fragment="", script=""):
    """The page as a browser has it after its own script, and one more, ran."""
    copy = tmp_path / f"shown-{width}.html"
    copy.write_text(path.read_text().replace("</body>", f"<script>{script}</script></body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               f"--window-size={width},900", "--virtual-time-budget=4000", "--dump-dom",
               f"file://{copy}{fragment}"]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine; Debian and Ubuntu: apt install chromium")
def test_a_browser_shows_it(run, tmp_path):
    path = write_report([run], tmp_path / "report.html")[0]
    told = "document.body.dataset.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;"
    errors = "window.onerror = (message) => { document.body.dataset.error = message; };"
    dom = shown(path, tmp_path, width=1200, fragment="#1/2", script=errors + told)
    outline = Outline(dom)
    (body,) = [attrs for tag, attrs in outline.tags if tag == "body"]
    assert body["data-wide"] == "false" and "data-error" not in body
    options = [text for tag, text in outline.texts if tag == "option"]
    assert len(options) == 16 and any("chat 0, T 0, tiny" in text for text in options)
    buttons = [attrs for tag, attrs in outline.tags if tag == "button" and "data-round" in attrs]
    assert len(buttons) >= 12 and {"own"} <= {attrs["class"].split()[0] for attrs in buttons}
    opened = [attrs for attrs in buttons if "open" in attrs["class"].split()]
    assert {attrs["data-round"] for attrs in opened} == {"2"}
    assert any("round 3 of" in text for _, text in outline.texts)
    fates = {text for tag, text in outline.texts if tag == "td"} & {"stood", "refused", "not judged",
                                                                    "the target's own token"}  # fmt: skip
    assert "the target's own token" in fates
    # A click on a token opens its round.
    click = "document.querySelector('#answer button[data-round=\"1\"]').click();"
    assert "round 2 of" in shown(path, tmp_path, width=1200, script=click)
    phone = Outline(shown(path, tmp_path, width=500, script=told))
    (body,) = [attrs for tag, attrs in phone.tags if tag == "body"]
    assert body["data-wide"] == "false"
