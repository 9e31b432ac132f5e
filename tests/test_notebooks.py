"""The notebooks run from top to bottom, and what they keep says nothing of the machine that it ran on."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
from transformers.utils import logging

from dspark_hf.hub import embedded

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.ipynb"))
# What is large in a notebook, and small in a test.
SMALL = {
    r"(max_steps|eval_steps)=\d+": r"\1=4",
    r"logging_steps=\d+": "logging_steps=1",
    r"max_new_tokens=\d+": "max_new_tokens=12",
    r"draft_vocab_size=\d+": "draft_vocab_size=200",
    "NUM_SAMPLES, BATCH = 4, 400, 50": "NUM_SAMPLES, BATCH = 4, 40, 20",
    r"(TOPICS|PARTS) = \"([\w ]+, [\w ]+), .*\"": r'\1 = "\2"',
}
pytestmark = pytest.mark.filterwarnings("ignore:.*non-interactive:UserWarning")


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Call `run(path, changes)`: what the cells have printed comes back, and the names that they leave."""
    shown = SimpleNamespace(HTML=str, Markdown=str, display=print)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    backend = matplotlib.get_backend()
    matplotlib.use("agg")

    def run_cells(path, changes=()):
        names = {}
        for number, cell in enumerate(code_cells(path), start=1):
            source = "".join(cell["source"])
            for pattern, instead in dict(changes).items():
                source = re.sub(pattern, instead, source)
            exec(compile(source, f"{path.name}, cell {number}", "exec"), names)
        names["plt"].close("all")
        return capsys.readouterr().out, names

    yield run_cells
    matplotlib.use(backend)
    # Notebooks turn bars off.
    logging.enable_progress_bar()


@pytest.fixture
def tiny_pair(monkeypatch, tiny_target_dir, tiny_drafter_dir):
    for name, folder in (("resolve_target", tiny_target_dir), ("resolve_drafter", tiny_drafter_dir)):
        monkeypatch.setattr(embedded, name, lambda place, folder=folder: folder if place == "embedded" else str(place))


def check_pushed(hub, out):
    files = hub.files("org/tuned")
    assert "model.safetensors" in files and b"license: apache-2.0" in files["README.md"]
    assert re.search(r"org/tuned: tau \d\.\d\d", out)


def test_generate_with_a_tiny_pair(run, tiny_pair):
    out, names = run(NOTEBOOKS[0], SMALL)
    assert "identical ids: True" in out and sum(names["counts"].values()) == 40
    assert names["stats"].tau >= 1 and "drafter and lookup" in out


def test_training_with_a_tiny_target(run, tiny_pair):
    out, names = run(NOTEBOOKS[1], SMALL)
    assert "identical ids: True" in out and names["steps"] == (0, 4)
    assert set(names["results"]) == {"this notebook's", "shipped"}


def test_fine_tuning_with_a_tiny_pair(run, tiny_pair, hub):
    out, names = run(NOTEBOOKS[2], SMALL | {"PUSH_TO = None": 'PUSH_TO = "org/tuned"'})
    assert names["before"]["tau"] >= 1 and names["after"]["tau"] >= 1
    check_pushed(hub, out)


@pytest.mark.slow
def test_generate_with_the_embedded_pair(run):
    out, names = run(NOTEBOOKS[0])
    assert "identical ids: True" in out and names["stats"].tau > 1.5
    shares = {token: count / names["NUM_SAMPLES"] for token, count in names["counts"].items()}
    exact = names["exact"]
    assert sum(abs(shares.get(token, 0) - prob) for token, prob in exact.items()) / 2 < 0.12
    assert set(shares) <= set(exact)


@pytest.mark.slow
def test_training_with_the_embedded_target(run):
    out, names = run(NOTEBOOKS[1])
    assert "identical ids: True" in out and names["taus"][-1] > names["taus"][0] + 0.1


@pytest.mark.slow
def test_fine_tuning_with_the_embedded_pair(run, hub):
    out, names = run(NOTEBOOKS[2], {"PUSH_TO = None": 'PUSH_TO = "org/tuned"'})
    # 2.26 and 1.24: text of this kind was not among what the drafter was trained on.
    assert names["after"]["tau"] > names["before"]["tau"] + 0.5
    check_pushed(hub, out)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_kept_and_of_no_machine(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "kept as it was run"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    texts = ["".join(output.get("text", [])) for output in outputs]
    texts += ["".join(text) for output in outputs for kind, text in output.get("data", {}).items() if "text" in kind]
    assert not [text for text in texts if re.search(r"(^|\s|')/\w+/|\d\d:\d\d:\d\d|seconds|%\|", text)], (
        "no paths, times, bars"
    )
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert path.stat().st_size < 200_000
