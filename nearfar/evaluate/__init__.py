"""Judges of arrays: what an embedding is worth, with intervals. NumPy in, records out."""

from nearfar.evaluate.judge import Evaluation, evaluate
from nearfar.evaluate.probes import Judgement, Result, classification, few_label, knn, linear_probe
from nearfar.evaluate.retrieval import neighbours

__all__ = [
    "Evaluation", "Judgement", "Result", "classification", "evaluate", "few_label", "knn", "linear_probe",
    "neighbours",
]  # fmt: skip
