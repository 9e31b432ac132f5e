"""The package's public face: light to import, complete, and installing the seam by itself."""

import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dspark_hf
from dspark_hf.generation.seam import TESTED

ROOT = Path(__file__).resolve().parents[1]


# Lines run in processes of their own, forked from one with all that takes long to import and nothing that is wrapped.
FORKS = """
import os, sys
import transformers.modeling_utils
assert not [name for name in sys.modules if name == "transformers.generation.utils" or name.startswith("dspark_hf")]
for line in sys.argv[1:]:
    if os.fork() == 0:
        exec(line, {})
        sys.exit()
    assert os.wait()[1] == 0, line
"""


def run_python(code: str, *lines: str) -> None:
    result = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_import_is_light():
    run_python("import dspark_hf, sys; assert not {'torch', 'transformers', 'rich'} & set(sys.modules)")


def test_command_line_help_is_light():
    run_python("import dspark_hf.cli.main, sys; assert 'torch' not in sys.modules")


@pytest.mark.parametrize("name", dspark_hf.__all__)
def test_public_name_resolves_to_its_home(name):
    value = getattr(dspark_hf, name)
    assert value.__name__ == name
    assert value is getattr(importlib.import_module(dspark_hf._HOMES[name]), name)
    assert value.__doc__


def test_all_is_what_is_offered():
    assert sorted(dspark_hf._HOMES) == sorted(dspark_hf.__all__)
    assert set(dspark_hf.__all__) <= set(dir(dspark_hf))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        dspark_hf.Nothing  # noqa: B018


WRAPPED = (
    "from transformers.generation.utils import GenerationMixin; "
    "wrapped = hasattr(GenerationMixin._assisted_decoding, '__wrapped__'); "
)


def test_the_seam_is_installed_by_any_way_to_a_drafter_and_by_import_after_generation_alone():
    ways = [
        "import dspark_hf; dspark_hf.AutoDrafter",
        "from dspark_hf.modeling import DSparkModel",
        "from dspark_hf.generation.entry import speculative_generate",
        "import transformers.generation.utils; import dspark_hf",
    ]
    without = f"{WRAPPED} assert not wrapped"
    run_python(FORKS, without, *(f"{way}; {WRAPPED} assert wrapped" for way in ways))


def test_version_matches_the_installed_package():
    try:
        installed = importlib.metadata.version("dspark_hf")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is on the path but not installed")
    assert dspark_hf.__version__ == installed


def test_the_tested_transformers_are_those_of_the_requirements():
    oldest, newest = TESTED
    assert f'"transformers>={oldest},<' in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f"\ntransformers=={newest}." in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_an_installed_package_has_the_embedded_drafter(tmp_path):
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    shipped = json.loads((ROOT / "examples" / "drafters" / "smollm2-135m-dspark" / "config.json").read_text())
    run_python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from pathlib import Path; "
        "from dspark_hf.hub.embedded import embedded_drafter; from dspark_hf import AutoDrafter; "
        f"assert Path({str(tmp_path)!r}) in embedded_drafter().parents; "
        f"assert AutoDrafter.from_pretrained(embedded_drafter()).config.block_size == {shipped['block_size']}"
    )
