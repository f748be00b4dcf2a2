"""K losses → weights: one method per file, one line per file here."""

from ensemble import (
    aekd,
    alignedmtl,
    average_loss,
    cagrad,
    camkd,
    dualproj,
    ebkd,
    imtlg,
    mtkdrl,
    nashmtl,
    rlw,
    upgrad,
)
from ensemble.base import EnsembleMethod, TeacherLosses, combine, ensemble_dict, weigh

__all__ = [
    "EnsembleMethod",
    "TeacherLosses",
    "aekd",
    "alignedmtl",
    "average_loss",
    "cagrad",
    "camkd",
    "combine",
    "dualproj",
    "ebkd",
    "ensemble_dict",
    "imtlg",
    "mtkdrl",
    "nashmtl",
    "rlw",
    "upgrad",
    "weigh",
]
