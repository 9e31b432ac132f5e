"""Measuring a drafter: tasks, plain against speculative runs, figures, diagnosis, reports; and exactness."""

from dspark_hf.evaluation.diagnosis.verdict import Diagnosis, diagnose
from dspark_hf.evaluation.exactness.checks import check_greedy, check_sampling
from dspark_hf.evaluation.exactness.suite import run_exactness
from dspark_hf.evaluation.figures.summary import figures, summarize
from dspark_hf.evaluation.origin import machine, provenance, versions
from dspark_hf.evaluation.running.evaluate import evaluate, place_among_processes
from dspark_hf.evaluation.running.folder import RunFolder
from dspark_hf.evaluation.running.journal import Journal, journal_path
from dspark_hf.evaluation.running.precision import PrecisionCopies
from dspark_hf.evaluation.running.records import Call
from dspark_hf.evaluation.running.runs import DecodingSettings, Run, generate_plain, generate_speculative
from dspark_hf.evaluation.running.settings import EvaluationSettings
from dspark_hf.evaluation.running.ties import TieFinder, TokenDifference, first_difference
from dspark_hf.evaluation.running.ways import (
    Way,
    assistant_way,
    drafter_way,
    lookup_way,
    plain_way,
    static_way,
    synthetic_way,
)
from dspark_hf.evaluation.tasks.catalogue import TASKS
from dspark_hf.evaluation.tasks.loading import LoadedTask, Question, load_task, load_tasks
from dspark_hf.evaluation.tasks.prompts import encode_prompts, load_prompts
from dspark_hf.files import write_json
from dspark_hf.generation import seam

# What is measured here is generate() with a drafter.
seam.install()

__all__ = [
    "TASKS",
    "Call",
    "DecodingSettings",
    "Diagnosis",
    "EvaluationSettings",
    "Journal",
    "LoadedTask",
    "PrecisionCopies",
    "Question",
    "Run",
    "RunFolder",
    "TieFinder",
    "TokenDifference",
    "Way",
    "assistant_way",
    "check_greedy",
    "check_sampling",
    "diagnose",
    "drafter_way",
    "encode_prompts",
    "evaluate",
    "figures",
    "first_difference",
    "generate_plain",
    "generate_speculative",
    "journal_path",
    "load_prompts",
    "load_task",
    "load_tasks",
    "lookup_way",
    "machine",
    "place_among_processes",
    "plain_way",
    "provenance",
    "run_exactness",
    "static_way",
    "summarize",
    "synthetic_way",
    "versions",
    "write_json",
]
