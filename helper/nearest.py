"""Which earlier run comes nearest to one that was to be resumed and is not there."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from helper.options import typed

ALIKE = ("dataset", "model", "model_s", "method", "trial", "seed")
"""Options that are the same in every run that may be meant."""

IMAGES = "images"
"""What a difference of the training images is called, beside options."""


def nothing_to_resume(folder: Path, options: Mapping[str, Any], images: str, ignored: Collection[str]) -> str:
    """Says that ``folder`` holds no run, and which one beside it is most like it.

    Args:
        folder: of the run that starts.
        options: the run's, as ``parameters.json`` holds them.
        images: the dataset with its identity.
        ignored: options that change nothing.
    """
    text = f"nothing to resume in {folder}, starting"
    candidates = []
    for path in folder.parent.glob("*/parameters.json"):
        differing = differences(path, options, images, ignored) if path.parent != folder else {}
        finished = (path.parent / "result.json").exists()
        if differing and not (finished and differing.keys() - {"epochs", IMAGES}):
            candidates.append((len(differing), -path.stat().st_mtime, path.parent, differing))
    if not candidates:
        return text
    _, _, nearest, differing = min(candidates)
    told = [
        f"{name if name == IMAGES else f'--{name}'} {typed(theirs)}, not {typed(ours)}"
        for name, (theirs, ours) in differing.items()
    ]
    return f"{text}\n  nearest: {nearest} (differs in {'; '.join(told)})"


def differences(
    parameters: Path, options: Mapping[str, Any], images: str, ignored: Collection[str]
) -> dict[str, tuple[Any, Any]]:
    """Where a run's options and images are others: name → its value and the one wanted; empty for an unlike run."""
    try:
        stored = json.loads(parameters.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(stored, dict) or any(stored.get(name) != options.get(name) for name in ALIKE):
        return {}
    names = [name for name in options if name not in ignored and name in stored]
    found = {name: (stored[name], options[name]) for name in names if stored[name] != options[name]}
    # the dataset and its identity in the run's name
    named = re.search(rf"(?:^|-)({re.escape(options['dataset'])}(?:@[0-9a-f]{{6}})?)(?:-|$)", parameters.parent.name)
    return found | ({IMAGES: (named[1], images)} if named and named[1] != images else {})
