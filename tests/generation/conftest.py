"""Puts the tools of this folder on the path, and the seam in place."""

import sys
from pathlib import Path

import pytest

import dspark_hf.generation.seam

sys.path.append(str(Path(__file__).parent))
dspark_hf.generation.seam.install()

from tiny_targets import FAMILIES, make_target  # noqa: E402


@pytest.fixture(autouse=True)
def drafters_alone(request, monkeypatch):
    """Every draft is the drafter's unless a test asks for lookup; not in tests marked `lookup`."""
    if "lookup" not in request.keywords:
        monkeypatch.setattr("dspark_hf.generation.request.MOST_LOOKUP_ROWS", 0)


@pytest.fixture(scope="module", params=FAMILIES)
def any_target(request):
    """A tiny target of each family."""
    return make_target(request.param)


@pytest.fixture(scope="module")
def target():
    """A tiny Llama."""
    return make_target()
