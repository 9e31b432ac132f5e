"""Measuring a drafter: prompts, plain against speculative runs, numerical ties, reports."""

from dspark_hf.evaluation.benchmark import BenchmarkSettings, run_benchmark
from dspark_hf.evaluation.prompts import Prompt, encode_prompts, load_prompts
from dspark_hf.evaluation.report import provenance, write_json
from dspark_hf.evaluation.runs import Run, generate_plain, generate_speculative
from dspark_hf.evaluation.ties import TieFinder, TokenDifference, first_difference

__all__ = [
    "BenchmarkSettings",
    "Prompt",
    "Run",
    "TieFinder",
    "TokenDifference",
    "encode_prompts",
    "first_difference",
    "generate_plain",
    "generate_speculative",
    "load_prompts",
    "provenance",
    "run_benchmark",
    "write_json",
]
