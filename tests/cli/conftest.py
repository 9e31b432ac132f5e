"""Running commands in this process."""

from dataclasses import dataclass

import pytest
from typer.testing import CliRunner


@dataclass(frozen=True)
class Outcome:
    """What a command printed and how it ended; whitespace is collapsed, because tables and errors wrap."""

    code: int
    out: str
    err: str


@pytest.fixture
def dspark(monkeypatch):
    """Call `dspark(*arguments)` as the shell would."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Outcome:
        from dspark_hf.cli.main import app

        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, " ".join(result.stdout.split()), " ".join(result.stderr.split()))

    return run


@pytest.fixture
def models(tiny_target_dir, tiny_drafter_dir) -> list[str]:
    """Options that name the tiny target and its drafter."""
    return ["--target", tiny_target_dir, "--drafter", tiny_drafter_dir]
