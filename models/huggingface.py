"""Image classifiers of Hugging Face's transformers, as ``hf/<repository or folder>``.

transformers (``pip install transformers``) is asked for only where such a name is; code in a repository is never run.
Untrained, ``hf/…`` is a network of that configuration; as a teacher without a checkpoint, the published one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helper.errors import UsageError
from helper.teachers.record import Eyes
from models.base import Builder, from_outside, source_dict
from models.wrapped import Parts, Plain, Pooled, checksum, first_line, quiet_hub

PREFIX = "hf/"
FILES = ("config.json", "*.safetensors", "*.bin")


class HuggingFaceNetwork(Pooled):
    """A map per hidden state: those of convolutions as they are, tokens put where their patches are in the image.

    The last one is what the backbone returns in the end, with its last normalisation.
    """

    _channels_last: bool | None = None  # whether its maps are [B, H, W, C]; None: not known yet

    @staticmethod
    def fits(net: nn.Module) -> bool:
        """Whether a network is such a classifier."""
        inner = getattr(net, "base_model", net)
        return inner is not net and isinstance(getattr(net, "classifier", None), nn.Module)

    @torch.compiler.disable
    def look(self, x: Tensor) -> Parts:
        seen: dict[str, Any] = {}
        hooks = (
            self.net.base_model.register_forward_hook(lambda _, __, output: seen.update(trunk=output)),
            self.net.classifier.register_forward_pre_hook(lambda _, given: seen.update(vector=given[0].flatten(1))),
        )
        try:
            output = self.net(x, output_hidden_states=True)
        finally:
            for hook in hooks:
                hook.remove()
        tokens = output.hidden_states or ()
        states = getattr(output, "reshaped_hidden_states", None) or tokens
        if self._channels_last is None:
            self._channels_last = channels_last(states, tokens)
        tensors = [*states[:-1], getattr(seen["trunk"], "last_hidden_state", None)]
        maps = [each for each in (self._as_map(state, x) for state in tensors) if each is not None]
        if tensors[-1] is None or not maps:
            raise self.no_maps()
        return maps, seen["vector"], output.logits

    def classify_vector(self, vector: Tensor) -> Tensor:
        return self.net.classifier(vector)

    def _as_map(self, state: Tensor | None, x: Tensor) -> Tensor | None:
        """``[B, C, H, W]``, or tokens ``[B, L, C]`` of square images, those of the patches last; None for all else."""
        if state is None or state.ndim not in (3, 4):
            return None
        if state.ndim == 4:
            return state.permute(0, 3, 1, 2) if self._channels_last else state
        patch = getattr(self.net.config, "patch_size", None)
        side = x.shape[2] // patch if isinstance(patch, int) else 0
        if not 0 < side * side <= state.shape[1]:  # their number has been reduced since
            side = math.isqrt(state.shape[1])
        return state[:, -side * side :].unflatten(1, (side, side)).permute(0, 3, 1, 2)


def channels_last(states: Sequence[Tensor], tokens: Sequence[Tensor]) -> bool | None:
    """Whether maps are ``[B, H, W, C]``, by the same states as tokens ``[B, L, C]``; None where no stage can tell."""
    pairs = zip(states, tokens, strict=False)
    widths = [(state, each.shape[-1]) for state, each in pairs if state.ndim == 4 and each.ndim == 3]
    sides = [(state.shape[-1] == width, state.shape[1] == width) for state, width in widths]
    told = [last for last, first in sides if last != first]
    return all(told) if told else None


def huggingface_model(
    name: str, num_classes: int, pretrained: bool = False, whole: bool = False
) -> HuggingFaceNetwork | Plain:
    """Build ``hf/<name>``.

    Args:
        name: a folder, or a repository of the hub.
        num_classes: number of logits.
        pretrained: load the published weights; the last layer is new where ``num_classes`` differs from theirs.
        whole: load them with their last layer, for as many classes as they have.

    Raises:
        UsageError: it cannot be had, is no image classifier, or lacks some of its weights.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    settings: dict[str, Any] = {"trust_remote_code": False, **({} if whole else {"num_labels": num_classes})}
    try:
        with quiet(), quiet_hub():
            if pretrained or whole:
                settings |= {"dtype": torch.float32, "ignore_mismatched_sizes": True, "output_loading_info": True}
                net, report = AutoModelForImageClassification.from_pretrained(name, **settings)
            else:
                config = AutoConfig.from_pretrained(name, **settings)
                net, report = AutoModelForImageClassification.from_config(config, trust_remote_code=False), {}
    except Exception as error:  # of the hub, of HTTP, of files, of configurations: many kinds mean the same here
        raise UsageError(f"{PREFIX}{name} cannot be had as an image classifier: {first_line(error)}") from None
    require_loaded(PREFIX + name, net, report, whole)
    kind = HuggingFaceNetwork if HuggingFaceNetwork.fits(net) else Plain
    network = kind(net.config.num_labels, net.float().train(), PREFIX + name)
    if whole:
        network.wants, network.class_names, network.own_spelling = wanted(name), names_of_classes(net), True
    return network


def names_of_classes(net: Any) -> list[str] | None:
    """What its configuration calls them, in the order of its logits; None where that says nothing."""
    names = [str(name) for _, name in sorted(net.config.id2label.items())]
    return None if names == [f"LABEL_{k}" for k in range(len(names))] else names


def require_loaded(label: str, net: Any, report: Mapping[str, Any], whole: bool) -> None:
    """UsageError where weights have been left at random.

    Args:
        label: begins its line.
        net: the network.
        report: transformers' own of what it has loaded.
        whole: the last layer, which has a row for each class, has to be loaded too.
    """
    new = {*report.get("missing_keys", ()), *(name for name, *_ in report.get("mismatched_keys", ()))}
    shapes, last = {name: value.shape for name, value in net.state_dict().items()}, (net.config.num_labels,)
    lost = sorted(
        name for name in new if not name.endswith("num_batches_tracked") and (whole or shapes[name][:1] != last)
    )
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise UsageError(f"{label}: its weights lack {lost[0]!r}{more}, or have them in another shape")


def wanted(name: str) -> Eyes:
    """The images that its own image processor makes, as far as there is one."""
    from transformers import AutoImageProcessor

    try:
        with quiet(), quiet_hub():
            says = AutoImageProcessor.from_pretrained(name, trust_remote_code=False).to_dict()
    except (OSError, ValueError):  # none there, or none that is known
        return Eyes()
    if "data_config" in says:  # timm's networks keep timm's ways
        return Eyes(says["data_config"]["mean"], says["data_config"]["std"], says["data_config"]["input_size"][-1])
    if says.keys().isdisjoint(("do_normalize", "do_rescale")):  # it is not known what it does
        return Eyes()
    sides = says.get("crop_size") if says.get("do_center_crop") else says.get("size")
    size = sides.get("height", sides.get("shortest_edge")) if isinstance(sides, Mapping) else sides
    mean, std = (says["image_mean"], says["image_std"]) if says.get("do_normalize") else ([0.0] * 3, [1.0] * 3)
    # it normalises value·factor − offset of values from 0 to 255, Eyes those from 0 to 1
    white = 255 * says["rescale_factor"] if says.get("do_rescale") else 255
    offset = 1 if says.get("rescale_offset") else 0
    mean, std = ([(each + offset) / white for each in mean], [each / white for each in std])
    if says.get("include_top"):  # EfficientNet's divides by the deviation once more
        std = [each * again for each, again in zip(std, says["image_std"], strict=True)]
    return Eyes(mean, std, size, "BGR" if says.get("do_flip_channel_order") else None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and warnings of transformers, which would say that a layer is new."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def run_name(folder: Path) -> str:
    """``hf/name@1a2b3c`` for a folder of this name and content."""
    contents = sorted(path for pattern in FILES for path in folder.glob(pattern))
    return f"{PREFIX}{folder.resolve().name}@{checksum(*contents)}"


@source_dict.register("hf/<repository or folder>")
def source(name: str) -> Builder | None:
    """Names of the hub, and folders."""
    if not name.startswith(PREFIX):
        return None
    if importlib.util.find_spec("transformers") is None:
        raise UsageError(f"{name!r} needs the package transformers; pip install transformers")
    where = name.removeprefix(PREFIX)
    folder = Path(where)
    if folder.is_dir() and not (folder / "config.json").exists():
        raise UsageError(f"{name!r}: the folder {where!r} has no config.json")
    build = partial(huggingface_model, where)
    if folder.is_dir():
        return from_outside(build, partial(run_name, folder))
    if where.count("/") > 1 or where.startswith((".", "~", "/")) or not where:
        raise UsageError(f"there is no {name!r}: neither a folder nor owner/name of the hub")
    return from_outside(build)
