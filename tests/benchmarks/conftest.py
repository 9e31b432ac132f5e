"""A tiny target, and text that it wrote."""

import pytest
from written_rows import make_target, write_rows


@pytest.fixture(scope="package")
def target():
    return make_target()


@pytest.fixture(scope="package")
def rows(target):
    return write_rows(target)
