"""Heads: scikit-learn classifiers over feature rows, and the file that keeps one."""

from featx.heads.centroid import CentroidHead
from featx.heads.file import HEADS, HeadFile, load_head, save_head
from featx.heads.knn import NEIGHBOURS_GRID, KNNHead
from featx.heads.linear import LR_GRID, LinearHead
from featx.heads.logistic import C_GRID, DINOV2_C_GRID, LogisticHead
from featx.heads.mlp import MLPHead
from featx.heads.ridge import ALPHA_GRID, RidgeHead
from featx.heads.tail import TailHead

__all__ = [
    "ALPHA_GRID",
    "C_GRID",
    "DINOV2_C_GRID",
    "HEADS",
    "LR_GRID",
    "NEIGHBOURS_GRID",
    "CentroidHead",
    "HeadFile",
    "KNNHead",
    "LinearHead",
    "LogisticHead",
    "MLPHead",
    "RidgeHead",
    "TailHead",
    "load_head",
    "save_head",
]
