"""Packaging of dspark_hf. `make demo` and `make test` install it with the exact versions of constraints.txt."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

EXTRAS = {
    # The embedded target arrives as a GGUF file, which is read once.
    "gguf": ["gguf>=0.17.1"],
    # The site of the documentation: `make docs`. MkDocs 2 has no plugins.
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"],
    # The notebooks of examples/.
    "notebook": ["ipykernel>=6.29", "ipywidgets>=8.1", "jupyterlab>=4.0"],
    # `dspark serve`: what transformers' own server needs, and metrics.
    "serve": [
        "fastapi>=0.115",
        "openai>=2.0",
        "prometheus-client>=0.21",
        "pydantic>=2.11",
        "transformers>=5.24",
        "uvicorn>=0.30",
    ],
    # Training text from a target behind an OpenAI-compatible server.
    "server": ["openai>=1.98"],
    "test": [
        "fastapi>=0.115",
        # Ways of generation take turns in a benchmark.
        "greenlet>=3.1",
        "hypothesis>=6.100",
        "markdown-it-py>=3.0",
        "openai>=1.98",
        "prometheus-client>=0.21",
        "pytest>=8.0",
        "pytest-xdist>=3.5",
        "ruff>=0.9",
        "scipy>=1.13",
        # What a tracker keeps of a run is read back.
        "tensorboard>=2.18",
        "uvicorn>=0.30",
        # A grammar engine, for examples/grammar.py.
        "xgrammar>=0.2.5",
    ],
}


class BuildWithDrafter(build_py):
    """Puts the embedded drafter into the package that is installed; a clone has it in examples/."""

    def run(self):
        super().run()
        if not self.editable_mode:
            drafters = Path(self.build_lib) / "dspark_hf" / "hub" / "drafters"
            shutil.copytree(Path(__file__).parent / "examples" / "drafters", drafters, dirs_exist_ok=True)


setup(
    name="dspark_hf",
    version="0.1.0",
    description="DSpark speculative decoding for transformers: train a drafter, save it, and call model.generate()",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    author="dspark_hf contributors",
    package_dir={"": "src"},
    packages=find_packages("src"),
    cmdclass={"build_py": BuildWithDrafter},
    package_data={
        "dspark_hf.evaluation.reporting": ["report.html"],
        "dspark_hf.publishing.cards": ["card_template.md"],
    },
    # transformers 5.23 itself asks for Python 3.11.
    python_requires=">=3.11",
    install_requires=[
        "accelerate>=1.10",
        "datasets>=4.0",
        "filelock>=3.12",
        "huggingface-hub>=1.31",
        "jinja2>=3.1.6",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "packaging>=24.0",
        "peft>=0.18",
        "pyyaml>=6.0",
        "rich>=13.8",
        "safetensors>=0.8",
        # How well a confidence head knows what stands.
        "scikit-learn>=1.5",
        # The first with torch.optim.Muon.
        "torch>=2.9",
        "tqdm>=4.67",
        # generation/seam.py wraps private methods of this release.
        "transformers>=5.23,<6",
        # The kernels of ops/. Which release goes with a torch, torch itself says.
        "triton>=3.5; platform_system == 'Linux'",
        "typer>=0.15",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["dspark = dspark_hf.cli.main:app"]},
)
