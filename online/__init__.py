"""Peers that teach each other: one method per file, one line per file here."""

from online import (
    boc,  # noqa: F401
    clilr,  # noqa: F401
    dml,  # noqa: F401
    ind,  # noqa: F401
    okddip,  # noqa: F401
    one,  # noqa: F401
)
from online.base import OnlineMethod, Structure, online_dict
from online.peers import Outputs, Peers

__all__ = ["OnlineMethod", "Outputs", "Peers", "Structure", "online_dict"]
