"""What commands are called with."""

import pytest


@pytest.fixture
def models(tiny_target_dir, tiny_drafter_dir) -> list[str]:
    """Options that name the tiny target and its drafter."""
    return ["--target", tiny_target_dir, "--drafter", tiny_drafter_dir]
