"""A small model in NumPy, real data and the loop that trains it: what ``fastopt train`` runs.

Needs the extra ``fastopt[train]`` (scikit-learn for the data, matplotlib for the pictures).
"""

from __future__ import annotations

from fastopt.train.data import Data, DataError, load_data
from fastopt.train.loop import Epoch, History, Seconds, fit
from fastopt.train.model import MLP
from fastopt.train.report import check_folder, write_report

__all__ = [
    "MLP",
    "Data",
    "DataError",
    "Epoch",
    "History",
    "Seconds",
    "check_folder",
    "fit",
    "load_data",
    "write_report",
]
