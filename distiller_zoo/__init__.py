"""Losses between one student and one teacher: one paper per file, one line per file here."""

from distiller_zoo import (
    ab,
    at,
    catkd,
    cc,
    crd,
    dist,
    dkd,
    fsp,
    ft,
    hint,
    inter,
    kd,
    ls,
    nkd,
    nst,
    ofd,
    pkt,
    reviewkd,
    rkd,
    semckd,
    simkd,
    sp,
    srrl,
    vid,
)
from distiller_zoo.base import Distiller, FeatureDistiller, Pair, distill_dict
from distiller_zoo.hint import Hint
from distiller_zoo.inter import Inter
from distiller_zoo.kd import KD, DistillKL

__all__ = [
    "KD",
    "DistillKL",
    "Distiller",
    "FeatureDistiller",
    "Hint",
    "Inter",
    "Pair",
    "distill_dict",
    "hint",
    "inter",
    "kd",
]
