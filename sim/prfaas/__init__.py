"""The analytic model of Prefill-as-a-Service (arXiv 2604.15039): what the event simulator is held against."""

from .lengths import TruncatedLogNormal
from .model import Split, System, Throughput, Ttft, throughput, ttft
from .render import render, render_bandwidths
from .search import Sensitivity, best, sensitivity
from .table6 import Row, bandwidths, case_study, homogeneous_optimum, optimum, table6

__all__ = [
    "Row",
    "Sensitivity",
    "Split",
    "System",
    "Throughput",
    "TruncatedLogNormal",
    "Ttft",
    "bandwidths",
    "best",
    "case_study",
    "homogeneous_optimum",
    "optimum",
    "render",
    "render_bandwidths",
    "sensitivity",
    "table6",
    "throughput",
    "ttft",
]
