"""Puts the tools of the generation tests on the path, and the seam in place."""

import sys
from pathlib import Path

import dspark_hf

sys.path.append(str(Path(__file__).parents[1] / "generation"))
dspark_hf.install_seam()
