"""The notebook runs from top to bottom, and what it shows says nothing of the machine that it ran on."""

import json
import re
from pathlib import Path

import matplotlib
import pytest

from dspark_hf.hub import embedded

PATH = Path(__file__).resolve().parents[1] / "examples" / "quickstart.ipynb"
CELLS = [cell for cell in json.loads(PATH.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def run_cells():
    backend, names = matplotlib.get_backend(), {}
    matplotlib.use("agg")
    try:
        for number, cell in enumerate(CELLS, start=1):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        names["plt"].close("all")
    finally:
        matplotlib.use(backend)
    return names


def check(names, out):
    assert "identical ids: True" in out and "12 conversations" in out
    first, last = map(float, re.search(r"loss ([\d.]+) -> ([\d.]+)", out).groups())
    assert last < first
    assert set(names["results"]) == {"shipped", "twenty steps"}
    assert all(stats.tau >= 1 for stats in names["results"].values())


@pytest.mark.filterwarnings("ignore:.*non-interactive:UserWarning")
def test_notebook_runs_with_a_tiny_target(monkeypatch, capsys, tiny_target_dir, tiny_drafter_dir):
    monkeypatch.setattr(embedded, "resolve_target", lambda _: tiny_target_dir)
    monkeypatch.setattr(embedded, "resolve_drafter", lambda _: tiny_drafter_dir)
    check(run_cells(), capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*non-interactive:UserWarning")
def test_notebook_runs_with_the_embedded_target(capsys):
    check(run_cells(), capsys.readouterr().out)


def test_outputs_are_small_and_of_no_machine():
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    texts = ["".join(output.get("text", [])) for output in outputs]
    assert any("identical ids: True" in text for text in texts), "the notebook is kept as it was run"
    assert not [text for text in texts if re.search(r"(^|\s|')/\w+/|\d\d:\d\d:\d\d|seconds", text)]
    assert PATH.stat().st_size < 100_000
