"""Peers that teach each other: one method per file, one line per file here."""

from online import (
    boc,
    clilr,
    dml,
    ind,
    okddip,
    one,
)
from online.base import OnlineMethod, Structure, online_dict
from online.peers import Outputs, Peers

__all__ = ["OnlineMethod", "Outputs", "Peers", "Structure", "online_dict"]
