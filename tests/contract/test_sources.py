"""Networks from outside: what their libraries compute, the contract as far as it goes, and refusals in one line."""

from __future__ import annotations

import argparse
import copy
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives import make_objective
from torch import Tensor, nn

from distiller_zoo import Pair, distill_dict
from ensemble import ensemble_dict
from helper import checkpoint
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.lone_values import lone_values
from helper.seen import Reads, feature_shapes, observe
from helper.teachers.asked import Teachers
from helper.teachers.files import TeacherFile, chosen_teachers, fingerprint
from helper.teachers.frozen import freeze
from helper.teachers.loading import Around, load_teachers
from helper.teachers.record import Eyes
from helper.weights import Labels, load_network
from models import StagedModel, model_dict
from online import online_dict
from scripts import export
from train_online import PeerTraining
from train_student import make_losses

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

CLASSES = 7
TIMM: dict[str, dict[str, Any]] = {  # a CNN, a ViT with a class token, hybrids with maps and with tokens
    "resnet10t": {},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2},
    "mobilevit_xxs": {},
    "levit_128s": {"img_size": 64},
    "test_convnext": {},
}
OWN = """
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):  # its children bear names that attributes have here
    def __init__(self, num_classes):
        super().__init__()
        self.stages = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.parts = nn.BatchNorm2d(8)
        self.run = nn.Conv2d(8, 16, 3, 2, 1)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        x = F.relu(self.parts(self.stages(x)))
        x = F.relu(self.run(x))
        return self.head(F.avg_pool2d(x, x.shape[-1]).flatten(1))


class Flat(nn.Module):
    def __init__(self, num_classes=7):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 8, 1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.fc(self.conv(x).flatten(1))


def wide(num_classes):
    return Net(num_classes)


def pair():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    return Pair()


def depth(layers):
    return Net(layers)


def broken():
    return nothing_of_this_name


number = 3


def three():
    return number
"""


def images(size: int = 32, batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def size_for(name: str) -> int:
    return 64 if "levit" in name else 32


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(OWN)
    return tmp_path / "nets.py"


def hf_folder(kind: str, folder: Path, **settings: Any) -> nn.Module:
    """A tiny classifier of transformers, also saved to ``folder``."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    configs: dict[str, dict[str, Any]] = {
        "ViT": {**small, "image_size": 32, "patch_size": 8},
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "Swin": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]},
        "Hiera": {"image_size": [32, 32], "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4},
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**configs[kind], num_labels=CLASSES, **settings)
    net = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    net.save_pretrained(folder)
    return net


def settled(model: nn.Module, size: int = 32) -> Any:
    """Statistics of batch normalisation as after some training; in evaluation mode."""
    with torch.no_grad():
        model.train()(images(size))
    return model.eval()


@torch.no_grad()
def check_contract(model: StagedModel, expected: Tensor, x: Tensor) -> None:
    """Logits are what is expected, however one gets there, also frozen."""
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    features, logits = model(x, is_feat=True)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert all(feature.ndim == 4 for feature in features[:-1])
    assert features[-1].ndim == 2
    assert list(feature_shapes(model, x)) == [tuple(feature.shape[1:]) for feature in features]
    torch.testing.assert_close(model.classify(features[-2]), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.classify_vector(features[-1]), expected, rtol=0, atol=1e-5)
    check_classifier(model, features[-2], expected)
    with pytest.raises(UsageError, match=f"{re.escape(model.label)} does not offer features before the activation"):
        model(x, is_feat=True, preact="both")
    twin = freeze(copy.deepcopy(model), x, "fp32")
    torch.testing.assert_close(twin(x), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(twin(x, is_feat=True)[0][:-1], features[:-1], rtol=1e-3, atol=1e-4)


def check_classifier(model: StagedModel, last: Tensor, expected: Tensor) -> None:
    """Alone it says the same; of each position too, where it reads their mean."""
    tail = model.tail()
    torch.testing.assert_close(tail.classify(last), expected, rtol=0, atol=1e-5)
    assert count(tail) < count(model) / 2
    if model.reads_means:
        cam = model.class_activation_maps(last)
        assert cam.shape == (*expected.shape, *last.shape[2:])
        torch.testing.assert_close(cam.mean((2, 3)), expected, rtol=0, atol=1e-5)
    else:
        with pytest.raises(UsageError, match=f"^--distill: {re.escape(model.label)} has no class activation maps"):
            model.class_activation_maps(last)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", TIMM)
def test_timm_networks_keep_the_contract(name: str) -> None:
    size = size_for(name)
    theirs = settled(timm.create_model(name, num_classes=CLASSES, **TIMM[name]), size)
    model = model_dict[f"timm/{name}"](num_classes=CLASSES, **TIMM[name]).eval()
    assert list(model.state_dict()) == list(theirs.state_dict())
    model.load_state_dict(theirs.state_dict())
    assert model.label == f"timm/{name}"
    check_contract(model, theirs(images(size)).detach(), images(size))


@pytest.mark.parametrize("kind", ["ViT", "ResNet", "Swin", "Hiera"])
def test_transformers_networks_keep_the_contract(kind: str, tmp_path: Path) -> None:
    theirs = hf_folder(kind, tmp_path / "net")
    name = f"hf/{tmp_path / 'net'}"
    model = model_dict[name](num_classes=CLASSES, whole=True).eval()
    assert list(model.state_dict()) == list(theirs.state_dict())
    check_contract(model, theirs(images()).logits.detach(), images())
    untrained = model_dict[name](num_classes=3)
    assert untrained(images()).shape == (4, 3)
    assert model.wants == untrained.wants == Eyes()
    started = model_dict[name](num_classes=3, pretrained=True)
    same = [torch.equal(value, theirs.state_dict()[key]) for key, value in started.state_dict().items()]
    assert same.count(False) == 2, "the classifier's weight and bias are new"


@torch.no_grad()
def test_maps_of_transformers_have_their_channels_in_front(tmp_path: Path) -> None:
    """Also where the library has them last; the first stage, of 8×8 positions and 8 channels, looks alike."""
    theirs = hf_folder("Hiera", tmp_path)
    states = theirs(images(), output_hidden_states=True).reshaped_hidden_states
    (*maps, last, _), _ = model_dict[f"hf/{tmp_path}"](num_classes=CLASSES, whole=True).eval()(images(), is_feat=True)
    assert [tuple(each.shape[1:]) for each in (*maps, last)][-3:] == [(16, 4, 4), (32, 2, 2), (64, 1, 1)]
    for mine, state in zip(maps, states, strict=False):
        torch.testing.assert_close(mine, state.permute(0, 3, 1, 2))


def test_a_file_of_transformers_is_to_be_named_by_its_folder(tmp_path: Path) -> None:
    """Its names are not those of the network in memory."""
    hf_folder("Swin", tmp_path)
    name, labels = f"hf/{tmp_path}", Labels("noise", CLASSES)
    with pytest.raises(UsageError, match=r"extra\); transformers saves weights under other names: copy .* hf/FOLDER$"):
        load_network(model_dict[name](num_classes=CLASSES), tmp_path / "model.safetensors", name, labels, "--teachers")


def without(folder: Path, part: str, other: Callable[[Tensor], Tensor] | None = None) -> None:
    """Take weights out of a checkpoint of transformers, or put others in their place."""
    safetensors = pytest.importorskip("safetensors.torch")
    path = folder / "model.safetensors"
    state = safetensors.load_file(path)
    kept = {name: value for name, value in state.items() if part not in name}
    changed = {name: other(value) for name, value in state.items() if other and part in name}
    assert len(kept) < len(state)
    safetensors.save_file(kept | changed, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "part", "other", "message"),
    [
        ("ViT", "layernorm_after.weight", None, r"'vit.*layernorm_after.weight' and 1 more"),
        ("ViT", "position_embeddings", lambda value: value[:, 1:].clone(), r"'vit.embeddings.position_embeddings',"),
        ("ResNet", "running_var", None, r"'resnet.*running_var' and \d more"),
    ],
)
def test_no_weight_of_transformers_is_left_at_random(
    tmp_path: Path, kind: str, part: str, other: Callable[[Tensor], Tensor] | None, message: str
) -> None:
    hf_folder(kind, tmp_path)
    without(tmp_path, part, other)
    for settings in ({"whole": True}, {"pretrained": True}):
        with pytest.raises(UsageError, match=f"^hf/.*: its weights lack {message}"):
            model_dict[f"hf/{tmp_path}"](num_classes=3, **settings)


@pytest.mark.parametrize("other", [None, lambda value: value[1:].clone()])
def test_only_who_learns_may_have_a_new_last_layer(tmp_path: Path, other: Callable[[Tensor], Tensor] | None) -> None:
    """Also where the checkpoint is of a backbone alone."""
    theirs = hf_folder("ViT", tmp_path).state_dict()
    without(tmp_path, "classifier", other)
    with pytest.raises(UsageError, match=r"its weights lack 'classifier.bias' and 1 more"):
        model_dict[f"hf/{tmp_path}"](num_classes=CLASSES, whole=True)
    started = model_dict[f"hf/{tmp_path}"](num_classes=CLASSES, pretrained=True).state_dict()
    assert all(torch.equal(started[name], theirs[name]) for name in theirs if "classifier" not in name)


def test_weights_of_transformers_need_no_counters(tmp_path: Path) -> None:
    hf_folder("ResNet", tmp_path)
    without(tmp_path, "num_batches_tracked")
    assert model_dict[f"hf/{tmp_path}"](num_classes=CLASSES, whole=True).num_classes == CLASSES


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViT", {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}),
        ("ViT", {"do_normalize": False, "rescale_factor": 0.01}),
        ("ViT", {"image_mean": [100.0, 110.0, 120.0], "image_std": [50.0, 60.0, 70.0], "do_rescale": False}),
        ("EfficientNet", {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.4, 0.5, 0.6]}),
        ("EfficientNet", {"image_std": [0.4, 0.5, 0.6], "rescale_factor": 1 / 127.5, "rescale_offset": True}),
        ("EfficientNet", {"image_std": [0.4, 0.5, 0.6], "do_normalize": False}),
        ("EfficientNet", {"image_std": [0.4, 0.5, 0.6], "include_top": False}),
        ("MobileViT", {"do_center_crop": False}),  # which never normalises
    ],
)
def test_transformers_networks_see_what_their_processors_make(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    theirs = hf_folder("ViT", tmp_path)
    processor = getattr(transformers, f"{kind}ImageProcessor")(size={"height": 32, "width": 32}, **settings)
    processor.save_pretrained(tmp_path)
    model = model_dict[f"hf/{tmp_path}"](num_classes=CLASSES, whole=True).eval()
    photographs = torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = theirs(processor(list(photographs), return_tensors="pt")["pixel_values"]).logits
    assert model.wants.size == 32
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (model.wants.mean, model.wants.std))
    seen = photographs.flip(1) if model.wants.channels == "BGR" else photographs
    torch.testing.assert_close(model((seen / 255 - mean) / std), expected, rtol=1e-4, atol=1e-5)


def test_timms_networks_within_transformers_see_what_timm_makes(tmp_path: Path) -> None:
    looks = {"input_size": [3, 48, 48], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    about = {"architecture": "test_vit", "num_classes": CLASSES, "model_args": {"img_size": 48}}
    config = transformers.TimmWrapperConfig.from_dict({**about, "pretrained_cfg": looks})
    transformers.TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
    model = model_dict[f"hf/{tmp_path}"](num_classes=CLASSES, whole=True)
    assert model.wants.checked("it") == Eyes(looks["mean"], looks["std"], 48).checked("it")


def test_a_processor_that_says_nothing_of_it_leaves_the_images_as_they_are(tmp_path: Path) -> None:
    hf_folder("ViT", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "LayoutLMv2ImageProcessor"}')
    assert model_dict[f"hf/{tmp_path}"](num_classes=CLASSES, whole=True).wants == Eyes()


def test_a_persons_network_keeps_the_contract(own: Path) -> None:
    model = settled(model_dict[f"{own}:Net"](num_classes=CLASSES))
    assert list(model.state_dict())[:2] == ["stages.weight", "parts.weight"]
    assert type(model.net).__name__ == "Net"
    check_contract(model, model.net(images()).detach(), images())
    assert type(model_dict[f"{own}:wide"](num_classes=3).net).__name__ == "Net"


ENDS = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm


class Read(nn.Module):
    def __init__(self, channels, classes, before=None):
        super().__init__()
        self.weight, self.before = nn.Parameter(torch.randn(classes, channels)), before or nn.Identity()

    def forward(self, x):
        return F.linear(self.before(x), self.weight)


class Net(nn.Module):
    def __init__(self, num_classes, last=None):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.fc = last or nn.Linear(16, num_classes)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


def weighed(num_classes):
    return Net(num_classes, weight_norm(nn.Linear(16, num_classes)))


def spectral(num_classes):
    return Net(num_classes, spectral_norm(nn.Linear(16, num_classes)))


def read(num_classes):
    return Net(num_classes, nn.Sequential(nn.Dropout(), Read(16, num_classes)))


def lazy(num_classes):
    return Net(num_classes, nn.LazyLinear(num_classes))


def compiled(num_classes):
    return torch.compile(Net(num_classes))


def normalised(num_classes):
    return Net(num_classes, Read(16, num_classes, nn.LayerNorm(16)))


class Channels(nn.Module):
    def __init__(self, num_classes, pool=None):
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), pool or (lambda x: x.mean((1, 2)))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.pool(self.norm(self.conv(x).permute(0, 2, 3, 1))))


class Attending(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.qkv, self.fc = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 48), nn.Linear(16, num_classes)

    def forward(self, x):
        x = self.conv(x).flatten(2).mT
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT).exp()
        return self.fc((scores / scores.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2)[:, 0])


class Own(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes, nn.Identity())
        self.weight = nn.Parameter(torch.randn(num_classes, 16))

    def forward(self, x):
        return F.linear(super().forward(x), self.weight)
"""


@pytest.fixture
def ends(tmp_path: Path) -> Path:
    (tmp_path / "ends.py").write_text(ENDS)
    return tmp_path / "ends.py"


@pytest.mark.parametrize("name", ["weighed", "spectral", "read"])
def test_a_last_layer_may_make_its_weight(name: str, ends: Path) -> None:
    torch.manual_seed(0)
    model = settled(model_dict[f"{ends}:{name}"](num_classes=CLASSES))
    check_contract(model, model.net(images()).detach(), images())


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_layers_without_sizes_are_one_line(ends: Path) -> None:
    with pytest.raises(UsageError, match=r"ends.py:lazy has layers without sizes \(LazyLinear\): let lazy call it on"):
        model_dict[f"{ends}:lazy"](num_classes=CLASSES)


def test_a_network_that_its_file_compiles_keeps_its_names(ends: Path) -> None:
    model, plain = (model_dict[f"{ends}:{name}"](num_classes=CLASSES) for name in ("compiled", "Net"))
    load_network(model, written(plain, ends.parent / "a.pth"), "compiled", Labels("noise", CLASSES), "--teachers")
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


def written(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


POOLS: dict[str, Callable[[Tensor], Tensor]] = {  # of maps whose channels are the last axis, or the first
    "B H W C": lambda x: x.mean((1, 2)),
    "B H W C, one by one": lambda x: x.mean(1).mean(1),
    "B H W C, kept": lambda x: torch.sum(x, dim=[-3, -2], keepdim=True).flatten(1) / 64,
    "B C H W": lambda x: x.permute(0, 3, 1, 2).mean((2, 3)),
    "B C H W, one by one": lambda x: x.permute(0, 3, 1, 2).mean(3).mean(2),
    "B C H W, kept": lambda x: x.permute(0, 3, 1, 2).mean(2, keepdim=True).mean(-1, True).flatten(1),
    "B C H W, max": lambda x: x.permute(0, 3, 1, 2).max(-1)[0].max(dim=-1).values,
    "B C H W, module": lambda x: nn.AdaptiveAvgPool2d(1)(x.permute(0, 3, 1, 2)).flatten(1),
    "and other axes": lambda x: x.amax((1, 2)) + 0 * torch.max(x, x.amax()).sum(3, keepdim=True).amax().sum(0),
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_maps_are_what_is_pooled_over_its_positions(pool: Callable[[Tensor], Tensor], ends: Path) -> None:
    torch.manual_seed(0)
    model: Any = model_dict[f"{ends}:Channels"](num_classes=CLASSES).eval()
    found: list[Tensor] = []
    model.net.pool = lambda x: (found.append(x), pool(x))[1]
    features, logits = model(images(), is_feat=True)
    assert [tuple(each.shape[1:]) for each in features] == [(8, 8, 8), (8,)]
    torch.testing.assert_close(model.classify(features[-2]), logits)
    moved = features[-2] - found[-1].permute(0, 3, 1, 2)
    torch.testing.assert_close(moved, moved.mean((2, 3), keepdim=True).expand_as(moved), rtol=0, atol=1e-5)


def test_attention_is_no_map(ends: Path) -> None:
    model = model_dict[f"{ends}:Attending"](num_classes=CLASSES)
    with pytest.raises(UsageError, match=r"Attending offers logits and .* no map is pooled before its last Linear"):
        model(images(), is_feat=True)


@pytest.mark.parametrize("name", ["normalised", "Own"])
@torch.no_grad()
def test_a_network_whose_last_layer_is_not_found_teaches_logits(
    name: str, ends: Path, loss_options: Callable[..., argparse.Namespace]
) -> None:
    torch.manual_seed(0)
    model = settled(model_dict[f"{ends}:{name}"](num_classes=CLASSES))
    with pytest.raises(UsageError, match=f"{name} offers logits and .* no child makes its logits of the vector"):
        losses_of("inter", model_dict["resnet8"](num_classes=CLASSES), model)
    expected = model.net(images())
    torch.testing.assert_close(freeze(model, images(), "fp32")(images()), expected, rtol=1e-4, atol=1e-5)
    with torch.enable_grad():
        check_teaching("kd", "CAMKD", [model], loss_options(gamma=0.0, beta=0.0), {})


WISHES = """

import timm
from helper.teachers.record import Eyes


def wishing(net, wants):
    net.wants = wants
    return net


def plain(num_classes):
    return wishing(Net(num_classes), Eyes(0.7, 0.2, 48, "BGR"))


def of_timm(num_classes):
    return wishing(timm.create_model("test_convnext", num_classes=num_classes), Eyes(size=48))


def silent(num_classes):
    return wishing(Net(num_classes), None)


def odd(num_classes):
    return wishing(Net(num_classes), {"mean": 0.7})
"""


def test_a_persons_network_sees_what_it_wants(own: Path) -> None:
    """Before what the dataset has, after what is said of the teacher."""
    own.write_text(OWN + WISHES)
    shown = Eyes(0.5, 0.25, 32, "RGB").checked("noise")
    teachers, _ = load_teachers(
        [
            *choose(*(f"{own}:{name}" for name in ("plain", "of_timm", "silent"))),
            TeacherFile(f"{own}:plain", None, None, Eyes(0.1, size=24).checked("x")),
        ],
        partial(make, num_classes=CLASSES),
        Around(Labels("noise", CLASSES), shown, images()),
        "fp32",
    )
    assert [each and each.wanted for each in teachers.conversions] == [
        Eyes(0.7, 0.2, 48, "BGR").checked("x"),
        replace(shown, size=48),
        None,
        Eyes(0.1, 0.2, 24, "BGR").checked("x"),
    ]
    with pytest.raises(UsageError, match=r"nets.py:odd: its wants is a dict, not an Eyes of helper/teachers/record.py"):
        model_dict[f"{own}:odd"](num_classes=CLASSES)


def test_networks_of_timm_in_a_persons_file_are_known(tmp_path: Path) -> None:
    code = (
        "import timm\n\n\ndef small(num_classes):\n    return timm.create_model('test_vit', num_classes=num_classes, "
        "img_size=32)\n"
    )
    (tmp_path / "vit.py").write_text(code)
    model = settled(model_dict[f"{tmp_path}/vit.py:small"](num_classes=CLASSES))
    assert len(feature_shapes(model, images())) > 3
    check_contract(model, model.net(images()).detach(), images())


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[StagedModel]:
    """One of each make."""
    folder = tmp_path_factory.mktemp("teachers")
    (folder / "nets.py").write_text(OWN)
    names: dict[str, dict[str, Any]] = {f"timm/{name}": TIMM[name] for name in list(TIMM)[:3]}
    for kind in ("ViT", "ResNet"):
        hf_folder(kind, folder / kind)
        names[f"hf/{folder / kind}"] = {}
    names |= {f"{folder}/nets.py:Net": {}, "resnet8": {}}
    torch.manual_seed(0)
    return [settled(model_dict[name](num_classes=CLASSES, **settings)) for name, settings in names.items()]


@pytest.mark.parametrize("method", ensemble_dict)
@pytest.mark.parametrize(
    ("distill", "settings"),
    [("kd", {}), ("inter", {}), ("hint", {"hint_layer": "layer2:run,layer2,1"}), ("hint", {"hint_layer": -2})],
)
def test_they_teach_under_every_weighting(
    distill: str,
    settings: Mapping[str, Any],
    method: str,
    teachers: list[StagedModel],
    loss_options: Callable[..., argparse.Namespace],
) -> None:
    opt = loss_options(gamma=0.0, alpha=1.0, beta=0.0 if distill == "kd" else 1.0)
    check_teaching(distill, method, teachers, opt, settings)


@pytest.mark.parametrize(
    "distill", ["at", "sp", "nst", "vid", "semckd", "crd", "cc", "rkd", "pkt", "srrl", "ft", "simkd", "catkd"]
)
def test_they_teach_every_kind_of_feature(
    distill: str, teachers: list[StagedModel], loss_options: Callable[..., argparse.Namespace]
) -> None:
    check_teaching(distill, "AVERAGE_LOSS", teachers, loss_options(gamma=0.0, alpha=0.0, beta=1.0), {})


def check_teaching(
    distill: str, method: str, teachers: list[StagedModel], opt: argparse.Namespace, settings: Mapping[str, Any]
) -> None:
    torch.manual_seed(0)
    student, x = model_dict["resnet8"](num_classes=CLASSES), images(batch=8)
    task = make_objective(distill, method, student, Teachers(teachers), opt, x, settings)
    task.trained.train()
    loss = task.step(Batch(x, torch.arange(8) % CLASSES, places=torch.arange(8)), When(2, 4))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.layer1.parameters())
    assert task.predict(x)["network"].shape == (8, CLASSES)


ON_FEATURES = [name for name, kind in distill_dict.items() if not kind.on_logits()]


def losses_of(distill: str, student: nn.Module, teacher: nn.Module) -> None:
    make_losses(
        distill_dict[distill], {}, student, Teachers([teacher]), images(), CLASSES, torch.arange(100) % CLASSES, 8
    )


@pytest.mark.parametrize("distill", ON_FEATURES)
@pytest.mark.parametrize("learns", [False, True])
def test_a_loss_on_features_asks_for_a_network_that_has_them(distill: str, learns: bool, own: Path) -> None:
    """Before the first step."""
    ours, theirs = (model_dict[name](num_classes=CLASSES) for name in ("resnet8", f"{own}:Flat"))
    with pytest.raises(
        UsageError, match=r"nets.py:Flat (offers logits and|does not offer|has no)|which .*nets.py:Flat"
    ):
        losses_of(distill, *((theirs, ours) if learns else (ours, theirs)))


@pytest.mark.parametrize(
    ("name", "distill", "message"),
    [
        ("timm/deit_tiny_distilled_patch16_224", "srrl", "its classifier cannot read a pooled vector"),
        ("timm/deit_tiny_distilled_patch16_224", "simkd", "its classifier cannot read its last map"),
        ("timm/deit_tiny_distilled_patch16_224", "catkd", "has no class activation maps"),
        ("torchvision/squeezenet1_1", "srrl", "its classifier reads maps, no pooled vector"),
        ("torchvision/squeezenet1_1", "catkd", "has no class activation maps"),
        ("torchvision/vgg11", "catkd", "has no class activation maps"),
    ],
)
def test_a_classifier_that_cannot_be_asked_is_refused(name: str, distill: str, message: str) -> None:
    settings = {"img_size": 32, "depth": 1} if "deit" in name else {}
    teacher = model_dict[name](num_classes=CLASSES, **settings)
    with pytest.raises(UsageError, match=f"{name}.* ?{message}") as caught:
        losses_of(distill, model_dict["resnet8"](num_classes=CLASSES), teacher)
    check_refusal(distill, str(caught.value))


def check_refusal(distill: str, message: str) -> None:
    """It names the option, the loss and others that would do."""
    start, choices = message.split("; choose another network or one of ")
    assert re.match(rf"--distill: {distill} (asks a classifier|reads maps before their last ReLU)", start)
    assert {"kd", "at", "rkd"} <= {*choices.split(", ")} <= {*distill_dict} - {"srrl", "simkd", "catkd", "ab", "ofd"}


@pytest.mark.parametrize("distill", ["ab", "ofd", "reviewkd"])
def test_maps_before_a_relu_that_are_not_there(distill: str, own: Path) -> None:
    with pytest.raises(UsageError, match=r"before their last ReLU, which .*nets.py:Net does not offer") as caught:
        losses_of(distill, model_dict["resnet8"](num_classes=CLASSES), model_dict[f"{own}:Net"](num_classes=CLASSES))
    check_refusal(distill, str(caught.value))


def test_they_learn(own: Path, loss_options: Callable[..., argparse.Namespace]) -> None:
    """As students, with maps of named children."""
    torch.manual_seed(0)
    student = model_dict[f"{own}:Net"](num_classes=CLASSES)
    teacher = model_dict["resnet8"](num_classes=CLASSES)
    task = make_objective(
        "hint", "AEKD", student, Teachers([teacher, teacher]), loss_options(), images(), {"hint_layer": "run:layer2"}
    )
    task.trained.train()
    task.step(Batch(images(), torch.arange(4)), When(2, 4))["loss"].backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


@torch.no_grad()
def test_named_children_are_what_they_return(own: Path) -> None:
    ours = settled(model_dict["resnet8"](num_classes=CLASSES))
    theirs = settled(model_dict[f"{own}:Net"](num_classes=CLASSES))
    for model, name in ((ours, "layer2.0.bn1"), (theirs, "parts")):
        seen = observe(model, images(), Reads(named=(name,)))
        found: list[Tensor] = []
        child = dict(model.named_modules())[name]
        hook = child.register_forward_hook(lambda *each, into=found: into.append(each[2].clone()))
        model(images())
        hook.remove()
        torch.testing.assert_close(seen.seen(Reads(named=(name,))).maps, (found[0],))
        assert feature_shapes(model, images()).named[name] == found[0].shape[1:]


@pytest.mark.parametrize("name", ["bn1", "layer1.0.bn2"])
@torch.no_grad()
def test_what_works_in_place_leaves_named_maps_alone(name: str) -> None:
    """A ReLU behind the one, a residual sum and a ReLU behind the other."""
    torch.manual_seed(0)
    model = settled(model_dict["torchvision/resnet18"](num_classes=CLASSES))
    returned: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda *each: returned.append(each[2].clone()))
    (seen,) = observe(model, images(), Reads(named=(name,))).seen(Reads(named=(name,))).maps
    hook.remove()
    assert seen.min() < 0
    assert torch.equal(seen, returned[0])


@torch.no_grad()
def test_a_folded_convolution_is_not_offered(own: Path) -> None:
    model = settled(model_dict[f"{own}:Net"](num_classes=CLASSES))
    before = observe(model, images(), Reads(named=("parts",)))
    freeze(model, images(), "fp32")
    assert {"parts", "run"} == feature_shapes(model, images()).named.keys()
    after = observe(model, images(), Reads(named=("parts",)))
    torch.testing.assert_close(after.named, before.named, rtol=1e-4, atol=1e-5)


def test_a_stages_name_is_its_number() -> None:
    shapes = feature_shapes(model_dict["resnet8"](num_classes=CLASSES), images())
    by_name, by_number = (distill_dict["hint"](Pair(shapes, shapes), hint_layer=layer) for layer in ("layer2", 2))
    assert by_name.student == by_number.student == Reads(maps=(2,))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer4", r"--hint_layer: 'layer4' is no child of the student CifarResNet.*; did you mean 'layer\d'"),
        ("layer2:nothing", r"--hint_layer: 'nothing' is no child of the teacher .*nets.py:Net that returns a map"),
        ("fc", r"--hint_layer: 'fc' is no child of the student"),
        ("layer2:2", r"--hint_layer: 2 is no feature map of the teacher .*; choose from 0 to 0 .*, or a child's name"),
    ],
)
def test_layers_that_are_not_there(layer: str, message: str, own: Path) -> None:
    student, teacher = model_dict["resnet8"](num_classes=CLASSES), model_dict[f"{own}:Net"](num_classes=CLASSES)
    shapes = Pair(feature_shapes(student, images()), feature_shapes(teacher, images()))
    with pytest.raises(UsageError, match=message):
        distill_dict["hint"](shapes, hint_layer=layer)


def test_a_network_without_an_end_that_is_plain_has_named_maps_only(own: Path) -> None:
    model = model_dict[f"{own}:Flat"](num_classes=CLASSES)
    shapes = feature_shapes(model, images())
    assert distill_dict["hint"](Pair(shapes, shapes), hint_layer="conv").teacher_shape == (4, 4, 4)
    with pytest.raises(UsageError, match=r"nets.py:Flat offers logits and .* no map is pooled before its last Linear"):
        distill_dict["inter"](Pair(shapes, shapes))
    with pytest.raises(UsageError, match="runs as a whole"):
        model.run(images(), "conv", "fc")


@pytest.mark.parametrize(
    ("method", "name"), [("DML", "Own"), ("KDCL", "Net"), ("IND", "Own"), ("OKDDip", "Net"), ("FFL", "Net")]
)
def test_peers_that_share_nothing_run_as_a_whole(method: str, name: str, ends: Path) -> None:
    kind = online_dict[method](peers="networks")
    peers = kind.make_peers(partial(model_dict[f"{ends}:{name}"], num_classes=CLASSES))
    task = PeerTraining(peers, kind, images())
    task.trained.train()
    batch = Batch(images(), torch.arange(4), again=(images(),) * (kind.views - 1))
    task.step(batch, When(2, 4))["loss"].backward()
    assert all(each.grad is not None for each in peers.parameters())
    with pytest.raises(UsageError, match=r"has no stages that peers could share; choose another or --peers networks$"):
        online_dict[method](peers="branches").make_peers(partial(model_dict[f"{ends}:{name}"], num_classes=CLASSES))


@pytest.mark.parametrize("method", ["OKDDip", "FFL", "PCL"])
def test_peers_of_logits_only_are_refused_where_more_is_read(method: str, ends: Path) -> None:
    kind = online_dict[method](peers="networks")
    peers = kind.make_peers(partial(model_dict[f"{ends}:Own"], num_classes=CLASSES))
    with pytest.raises(UsageError, match=r"^--method: reads maps or vectors of its peers: .*Own offers logits and"):
        PeerTraining(peers, kind, images())


def test_the_mode_reaches_the_network_itself(own: Path) -> None:
    model = model_dict[f"{own}:Net"](num_classes=CLASSES)
    assert model.train().net.training
    lone_values(model, lambda: model(images(batch=1)))
    assert model.net.training
    assert not model.eval().net.training


def test_code_beside_the_file_comes_first(tmp_path: Path) -> None:
    """Also where their folder is called as one of ours."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("from models.net import Net\n")
    (tmp_path / "models" / "net.py").write_text(OWN)
    (tmp_path / "mine.py").write_text(
        "from models import Net\n\n\ndef make(num_classes):\n    return Net(num_classes)\n"
    )
    model = model_dict[f"{tmp_path}/mine.py:make"](num_classes=CLASSES)
    assert model(images()).shape == (4, CLASSES)
    import models

    assert models.model_dict is model_dict


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nets.py", "does not say what makes the network; write .*nets.py:CALLABLE"),
        ("nets.py:Nett", "nets.py has no 'Nett'; did you mean 'Net'.; it has Net, Flat"),
        ("nets.py:number", "is a int, not a function or class"),
        ("nets.py:three", "returned a int, not a network"),
        ("nets.py:depth", "cannot be made: TypeError: .*'layers'"),
        ("nets.py:broken", r"NameError: .*\(.*nets.py, line \d+\)"),
        ("wrong.py:net", r"SyntaxError: .*\(.*wrong.py, line 1\)"),
        ("gone.py:net", "there is no file"),
        ("gone.pt2", "there is no file"),
        ("damaged.pt2", "is no such file or is damaged"),
    ],
)
def test_files_that_make_no_network(name: str, message: str, own: Path) -> None:
    (own.parent / "wrong.py").write_text("def net(:\n")
    (own.parent / "damaged.pt2").write_text("x")
    with pytest.raises(UsageError, match=message) as error:
        model_dict[str(own.parent / name)](num_classes=CLASSES, whole=True)
    assert "\n" not in str(error.value)


def test_a_network_that_returns_no_tensor(own: Path) -> None:
    with pytest.raises(UsageError, match=r"nets.py:pair returns a tuple, not its logits"):
        model_dict[f"{own}:pair"](num_classes=CLASSES)(images())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet5o", "--model: there is no 'timm/resnet5o'; did you mean 'timm/resnet50'"),
        ("timm/resnet18.a1_in1x", "did you mean 'timm/resnet18.a1_in1k'"),
        ("hf/one/two/three", "neither a folder nor owner/name"),
        ("resnet8x5", "did you mean 'resnet8x4'.*hf/.*timm/<name>, FILE.py:CALLABLE"),
    ],
)
def test_unknown_names_are_told_the_nearest(name: str, message: str) -> None:
    assert name not in model_dict
    assert "\n" not in str(model_dict.unknown(name, "--model"))
    with pytest.raises(UsageError, match=message):
        raise model_dict.unknown(name, "--model")


@pytest.mark.parametrize(("name", "package"), [("timm/resnet18", "timm"), ("hf/microsoft/resnet-50", "transformers")])
def test_a_missing_library_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=f"--model: '{name}' needs the package {package}; pip install {package}"):
        raise model_dict.unknown(name, "--model")


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no connection\nand much more")

    monkeypatch.setattr("timm.create_model", offline)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", offline)
    for name in ("timm/resnet18", "hf/owner/name"):
        with pytest.raises(UsageError, match=f"^{name}.* cannot be had.*: no connection$"):
            model_dict[name](num_classes=CLASSES, **({"pretrained": True} if "timm" in name else {}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"has no config.json"):
        model_dict[f"hf/{tmp_path / 'empty'}"]


def test_published_weights_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, with the classes that they have; to start from, with the dataset's."""
    asked: list[dict[str, Any]] = []
    create = timm.create_model

    def published(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        asked.append({"pretrained": pretrained, **settings})
        return create(name, **settings)

    monkeypatch.setattr("timm.create_model", published)
    build = model_dict["timm/test_vit"]
    whole = build(num_classes=CLASSES, whole=True)
    assert (whole.num_classes, whole.wants) == (1000, Eyes((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 160))
    assert build(num_classes=CLASSES, pretrained=True).num_classes == CLASSES
    assert asked == [{"pretrained": True}, {"pretrained": True, "num_classes": CLASSES}]


@torch.no_grad()
def test_programs_teach_logits(tmp_path: Path) -> None:
    net, x = settled(model_dict["resnet8"](num_classes=CLASSES)), images()
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=batch), tmp_path / "net.pt2")
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "fixed.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; its files are not gone
        torch.jit.save(torch.jit.trace(net, x), tmp_path / "net.pt")
    for name in (f"{tmp_path}/net.pt2", f"torchscript/{tmp_path}/net.pt"):
        program = model_dict[name](num_classes=CLASSES, whole=True)
        assert (program.wants, program.class_names) == (Eyes(), None)
        (teacher,) = Teachers([program.train()]).networks
        freeze(teacher, x, "fp32")
        torch.testing.assert_close(teacher(x[:3]), net(x[:3]))
        with pytest.raises(UsageError, match="offers logits only"):
            len(feature_shapes(teacher, x))
        with pytest.raises(UsageError, match="can only teach: name it alone"):
            model_dict[name](num_classes=CLASSES)
    with pytest.raises(UsageError, match=r"batches of exactly 4 images; export it with dynamic_shapes"):
        model_dict[f"{tmp_path}/fixed.pt2"](num_classes=CLASSES, whole=True)


@pytest.mark.parametrize("grey", [{}, {"channels": 1}])
@torch.no_grad()
def test_a_program_teaches_as_the_checkpoint_that_it_was_written_of(tmp_path: Path, grey: dict[str, int]) -> None:
    """It sees the images in the same way, and is for the same classes."""
    net, names = settled(model_dict["resnet8"](num_classes=3)), ("cat", "dog", "emu")
    about = {"image_size": 48, "mean": [0.1] * 3, "std": [0.9] * 3, "classes": list(names), **grey}
    state = {"arch": "resnet8", "num_classes": 3, "dataset": "folder", "precision": "fp32", **about}
    torch.save({"model": net.state_dict(), **state}, tmp_path / "net.pth")
    says = export.about_images(argparse.Namespace(run=tmp_path), {}, state)
    (tmp_path / "net.pt2").write_bytes(export.torch_program(net, images(48, 2), says)[0])

    def teacher(suffix: str, classes: tuple[str, ...]) -> Teachers:
        around = Around(Labels("folder", 3, classes), Eyes(0.5, 0.25, 32, "RGB").checked("noise"), images())
        build = partial(make, num_classes=3)
        return load_teachers(choose(f"{tmp_path}/net{suffix}"), build, around, "fp32")[0]

    program, plain = (teacher(suffix, names) for suffix in (".pt2", ".pth"))
    assert program.conversions == plain.conversions != [None]
    torch.testing.assert_close(program.logits(images()), plain.logits(images()), rtol=1e-4, atol=1e-4)
    for suffix in (".pt2", ".pth"):
        with pytest.raises(UsageError, match=r"on other classes, in another order: 0 is 'cat' of .*, but 'emu' of"):
            teacher(suffix, names[::-1])


def teach(name: str, names: tuple[str, ...], **settings: Any) -> list[str]:
    """The lines on a teacher as published, for a dataset of these classes."""
    file = TeacherFile(name, None, None, **settings)
    around = Around(Labels("pets", CLASSES, names), Eyes(0.5, 0.25, 32, "RGB").checked("noise"), images())
    return load_teachers([file], partial(make, num_classes=CLASSES), around, "fp32")[1]


def test_classes_that_a_configuration_names_are_compared(tmp_path: Path) -> None:
    ours = ("ant_lion", "bee", "cat", "dog", "emu", "fox", "gnu")
    theirs = ["Ant lion", *ours[1:]]
    hf_folder("ViT", tmp_path, id2label=dict(enumerate(theirs)))
    name = f"hf/{tmp_path}"
    assert teach(name, ours) == []
    with pytest.raises(UsageError, match=r"on other classes, in another order: 0 is 'ant_lion' of its own, but 'gnu'"):
        teach(name, ours[::-1])
    assert teach(name, ours[::-1], classes=list(ours)) == []
    (line,) = teach(name, ("insect", *ours[1:]))
    assert line.endswith("otherwise than pets (0 is 'Ant lion', here 'insect'): are they in the same order?")
    hf_folder("ViT", tmp_path)
    assert teach(name, ours[::-1]) == [], "LABEL_0 and so on are no names"


def make(arch: str, **settings: Any) -> nn.Module:
    return model_dict[arch](**settings)


def choose(*given: str) -> list[TeacherFile]:
    return chosen_teachers([], given, None, "digits", model_dict)


def test_teachers_from_outside_are_named_everywhere(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    with_file = choose(
        "x@1.pth:nets.py:Net", "x.pth:nets.py:Net@ema", "nets.py:Net", "timm/resnet18", "a/x:timm/levit_128s"
    )
    assert [(file.arch, file.path, file.key) for file in with_file] == [
        ("nets.py:Net", Path("x@1.pth"), None),
        ("nets.py:Net", Path("x.pth"), "ema"),
        ("nets.py:Net", None, None),
        ("timm/resnet18", None, None),
        ("timm/levit_128s", Path("a/x"), None),
    ]
    assert choose(*map(str, with_file)) == with_file
    assert [TeacherFile.recorded(file.about()) for file in with_file] == with_file
    assert chosen_teachers([("timm/resnet18", None)], None, None, "digits", model_dict) == with_file[3:4]
    with pytest.raises(UsageError, match=r"setting.py: there are no published weights of resnet8; name a checkpoint"):
        chosen_teachers([("resnet8", None)], None, None, "digits", model_dict)
    for text, message in (
        ("timm/resnet5o", "did you mean 'timm/resnet50'"),
        ("x.pth:timm/resnet5o", "did you mean 'timm/resnet50'"),
        ("x.pth:gone.py:Net", "'gone.py:Net': there is no file 'gone.py'"),
        ("resnet8", "there is no checkpoint 'resnet8'"),
    ):
        with pytest.raises(UsageError, match=f"--teachers: .*{message}"):
            choose(text)


def test_an_edited_file_is_another_run(own: Path, tmp_path: Path) -> None:
    name = f"{own}:Net"
    before, of_teachers = model_dict.run_name(name), fingerprint(choose(name))
    assert before.startswith("nets.Net@")
    assert "/" not in before + of_teachers
    own.write_text(OWN + "# edited\n")
    assert model_dict.run_name(name) != before
    assert fingerprint(choose(name)) != of_teachers
    hf_folder("ViT", tmp_path / "vit")
    of_folder = model_dict.run_name(f"hf/{tmp_path}/vit")
    assert of_folder.startswith("hf/vit@")
    hf_folder("ViT", tmp_path / "vit", qkv_bias=False)
    assert model_dict.run_name(f"hf/{tmp_path}/vit") != of_folder
    assert model_dict.run_name("timm/resnet18") == "timm/resnet18"


def test_no_checkpoint_chooses_what_is_run(own: Path) -> None:
    """One that says its network is in a file of Python: only a person may ask for that."""
    path, mark = own.parent / "last.pth", own.parent / "was_run"
    own.write_text(f"{OWN}\n__import__('pathlib').Path({os.fspath(mark)!r}).touch()\n")
    checkpoint.save({"model": {}, "arch": f"{own}:Net", "num_classes": 7, "dataset": "digits"}, path)
    with pytest.raises(UsageError, match=r"says that its network is .*nets.py:Net; write .*last.pth:.*nets.py:Net"):
        choose(str(path))
    assert not mark.exists()
