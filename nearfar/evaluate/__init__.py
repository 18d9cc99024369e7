"""Judges of arrays: what an embedding is worth, with intervals. NumPy in, records out."""

from nearfar.evaluate.clusters import clustering
from nearfar.evaluate.intervals import of_difference, of_difference_over_seeds, of_paired_draws
from nearfar.evaluate.judge import Evaluation, evaluate
from nearfar.evaluate.probes import calibration, classification, few_label, knn, linear_probe
from nearfar.evaluate.records import Judgement, Result
from nearfar.evaluate.retrieval import neighbours, retrieval
from nearfar.evaluate.sentences import judge_pairs, judge_retrieval, pair_retrieval, spearman_difference, sts
from nearfar.evaluate.similarity import cosines, graded, verification

__all__ = [
    "Evaluation", "Judgement", "Result", "calibration", "classification", "clustering", "cosines", "evaluate",
    "few_label", "graded", "judge_pairs", "judge_retrieval", "knn", "linear_probe", "neighbours", "of_difference",
    "of_difference_over_seeds", "of_paired_draws", "pair_retrieval", "retrieval", "spearman_difference", "sts",
    "verification",
]  # fmt: skip
