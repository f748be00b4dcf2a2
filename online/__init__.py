"""Peers that teach each other: one method per file, one line per file here."""

from online import (
    boc,
    clilr,
    dml,
    ffl,
    ind,
    kdcl,
    okddip,
    one,
    pcl,
)
from online.base import OnlineMethod, Structure, averaging, online_dict
from online.peers import Outputs, Peers

__all__ = ["OnlineMethod", "Outputs", "Peers", "Structure", "averaging", "online_dict"]
