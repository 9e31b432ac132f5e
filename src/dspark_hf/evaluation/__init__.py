"""Measuring a drafter: prompts, plain against speculative runs, numerical ties, reports."""

from dspark_hf.evaluation.benchmark import BenchmarkSettings, run_benchmark
from dspark_hf.evaluation.compare import Comparison, compare, warm_up
from dspark_hf.evaluation.exactness import check_greedy, check_sampling
from dspark_hf.evaluation.exactness_suite import run_exactness
from dspark_hf.evaluation.journal import Journal, journal_path
from dspark_hf.evaluation.precision import PrecisionCopies
from dspark_hf.evaluation.prompts import encode_prompts, load_prompts
from dspark_hf.evaluation.report import machine, provenance, versions
from dspark_hf.evaluation.runs import DecodingSettings, Run, generate_plain, generate_speculative
from dspark_hf.evaluation.summary import summarize, tau_of
from dspark_hf.evaluation.ties import TieFinder, TokenDifference, first_difference
from dspark_hf.files import write_json
from dspark_hf.generation import seam

# What is measured here is generate() with a drafter.
seam.install()

__all__ = [
    "BenchmarkSettings",
    "Comparison",
    "DecodingSettings",
    "Journal",
    "PrecisionCopies",
    "Run",
    "TieFinder",
    "TokenDifference",
    "check_greedy",
    "check_sampling",
    "compare",
    "encode_prompts",
    "first_difference",
    "generate_plain",
    "generate_speculative",
    "journal_path",
    "load_prompts",
    "machine",
    "provenance",
    "run_benchmark",
    "run_exactness",
    "summarize",
    "tau_of",
    "versions",
    "warm_up",
    "write_json",
]
