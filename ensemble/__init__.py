"""K losses → weights: one method per file, one line per file here."""

from ensemble import aekd, average_loss, camkd, ebkd
from ensemble.base import EnsembleMethod, TeacherLosses, combine, ensemble_dict, weigh

__all__ = [
    "EnsembleMethod",
    "TeacherLosses",
    "aekd",
    "average_loss",
    "camkd",
    "combine",
    "ebkd",
    "ensemble_dict",
    "weigh",
]
