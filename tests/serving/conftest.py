"""Puts the tools of this folder and of the generation tests on the path, and the seam in place."""

import sys
from pathlib import Path

import dspark_hf

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "generation")]
dspark_hf.install_seam()
