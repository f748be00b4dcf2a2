"""What every network promises, whatever its family: features, partial runs, classifier, states, widths."""

from __future__ import annotations

import copy
import pickle
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from sums import all_asked, crossed, of_each_family
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from helper.errors import UsageError
from helper.registry import Registry
from models import StagedModel, model_dict
from models.torchvision_models import channels_of

OWN = of_each_family(name for name in model_dict if not name.startswith("torchvision/"))
SMALL = [
    "densenetd40k12",
    "vgg16_fc3",
    "resnet8",
    "ResNet18",
    "wrn_16_1",
    "vgg8",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
    "ShuffleV2_0_5",
]
FOREIGN = [
    f"torchvision/{name}"
    for name in (
        *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "googlenet", "vgg11_bn"),
        *("alexnet", "shufflenet_v2_x0_5", "squeezenet1_1", "convnext_tiny", "mnasnet0_5", "regnet_y_400mf"),
    )
]
READS_MAPS = "torchvision/squeezenet1_1"  # its classifier is a convolution
CLASSES = 7
# thinner than the published ones, in the units each family needs
THIN = {
    "resnet20": (8, 8, 16, 32),
    "resnet8x4": (16, 24, 48, 96),
    "wide_resnet20_8": (16, 16, 32, 64),
    "densenetd40k12": (16, 28, 20, 28),
    "vgg16_fc3": (16, 24, 32, 48, 64),
    "ResNet18": (16, 16, 24, 32, 48),
    "ResNet50": (16, 32, 64, 64, 128),
    "wrn_16_2": (8, 8, 16, 32),
    "vgg8": (16, 24, 32, 48, 64),
    "MobileNetV2": (8, 6, 8, 24, 80),
    "ShuffleV1": (12, 120, 240, 480),
    "ShuffleV2": (12, 60, 120, 256),
    "torchvision/efficientnet_b0": (8, 8, 13, 33, 200),
    "torchvision/efficientnet_v2_s": (12, 17, 21, 40, 128),
}
EFFICIENTNETS = ("b0", "b1", "b4", "b5", "v2_s") if all_asked() else ("b0", "b1", "v2_s")


def images(size: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def images_for(name: str) -> Tensor:
    return images(64 if name.startswith("torchvision/") else 32)


def build(name: str, **config: Any) -> StagedModel:
    torch.manual_seed(0)
    return model_dict[name](num_classes=CLASSES, **config).eval()


@pytest.mark.parametrize("name", [*OWN, *FOREIGN])
@torch.no_grad()
def test_features_runs_and_classifier_agree(name: str) -> None:
    model, x = build(name), images_for(name)
    logits = model(x)
    features, same_logits = model(x, is_feat=True)
    stages = model.stages

    assert logits.shape == (2, CLASSES)
    assert (model.num_classes, model.has_maps) == (CLASSES, True)
    assert len(features) == len(stages) + 1
    assert all(feature.ndim == 4 for feature in features[:-1])
    assert features[-1].ndim == 2
    torch.testing.assert_close(same_logits, logits)
    torch.testing.assert_close(model.classify(features[-2]), logits)
    if name == READS_MAPS:
        with pytest.raises(UsageError, match="reads maps, no pooled vector"):
            model.classify_vector(features[-1])
    else:
        torch.testing.assert_close(model.classify_vector(features[-1]), logits)
    torch.testing.assert_close(model.run(x, stages[0], stages[-1]), features[-2])
    for cut in range(1, len(stages)):
        trunk = model.run(x, stages[0], stages[cut - 1])
        torch.testing.assert_close(trunk, features[cut - 1])
        torch.testing.assert_close(model.run(trunk, stages[cut], stages[-1]), features[-2])


@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_preact_is_the_map_before_the_relu(name: str) -> None:
    model, x = build(name), images()
    features, logits = model(x, is_feat=True)
    before, same_logits = model(x, is_feat=True, preact=True)
    torch.testing.assert_close([same_logits, before[-1]], [logits, features[-1]])
    for stage, pre, post in zip(model.stages, before[:-1], features[:-1], strict=True):
        if stage in model.relu_after:
            assert pre.min() < 0
            torch.testing.assert_close(pre.relu(), post)
        elif stage in model.norms and not model.norms[stage].startswith(model.parts[stage]):
            torch.testing.assert_close(pre, model.get_submodule(model.norms[stage])(post))
        else:
            torch.testing.assert_close(pre, post)


@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_both_are_the_maps_before_the_relu_and_after_it(name: str) -> None:
    model, x = build(name), images()
    (*both, vector), logits = model(x, is_feat=True, preact="both")
    count = len(model.stages)
    for maps, preact in ((both[:count], True), (both[count:], False)):
        (*expected, same_vector), same_logits = model(x, is_feat=True, preact=preact)
        torch.testing.assert_close([*maps, vector, logits], [*expected, same_vector, same_logits])


@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_the_norm_that_a_map_before_the_relu_comes_from(name: str) -> None:
    """A change of its bias is a change of that map, by as much."""
    model, x = build(name), images()
    assert model.norms.keys() <= set(model.stages)
    for stage, norm in model.norms.items():
        index = model.stages.index(stage)
        before = model(x, is_feat=True, preact=True)[0][index]
        model.get_submodule(norm).bias += 0.5
        torch.testing.assert_close(model(x, is_feat=True, preact=True)[0][index], before + 0.5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_class_activation_maps(name: str) -> None:
    """Their mean over the positions is the network's answer, where its classifier is linear on the last map's mean."""
    model, x = build(name), images()
    features, logits = model(x, is_feat=True)
    if type(model).embed is not StagedModel.embed:
        with pytest.raises(UsageError, match=r"^--distill: .* has no class activation maps"):
            model.class_activation_maps(features[-2])
        return
    cam = model.class_activation_maps(features[-2])
    assert cam.shape == (*logits.shape, *features[-2].shape[2:])
    torch.testing.assert_close(cam.mean((2, 3)), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name: str) -> None:
    model = build(name).train()
    model(images(batch=4)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "name", ["resnet8", "vgg8", "wrn_16_1", "ShuffleV2_0_5", "MobileNetV2", "torchvision/resnet18"]
)
def test_features_and_plain_logits_update_batch_statistics_alike(name: str) -> None:
    plain, with_features = build(name).train(), build(name).train()
    config = {} if name.startswith("torchvision/") else {"preact": True}
    plain(images_for(name))
    with_features(images_for(name), is_feat=True, **config)
    torch.testing.assert_close(plain.state_dict(), with_features.state_dict())


@pytest.mark.parametrize("name", ["resnet8", "torchvision/resnet18", "torchvision/swin_t"])
@torch.no_grad()
def test_state_and_copies_give_the_same_network(name: str) -> None:
    model = build(name)
    x = images_for(name)
    torch.manual_seed(1)
    other = model_dict[name](num_classes=CLASSES).eval()
    other.load_state_dict(model.state_dict())
    expected = model(x)
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    # a copy must not share tensors with its original
    for parameter in copy.deepcopy(model).parameters():
        parameter.zero_()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", THIN)
@torch.no_grad()
def test_widths_make_a_thinner_network(name: str) -> None:
    thin, full = build(name, widths=THIN[name]), build(name)
    features, logits = thin(images(), is_feat=True)
    assert tuple(feature.shape[1] for feature in features[:-1]) == THIN[name]
    assert logits.shape == (2, CLASSES)
    torch.testing.assert_close(thin.classify(features[-2]), logits)
    assert size(thin) < size(full)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet32", 472_756),
        ("resnet110_bottleneck", 1_170_868),
        ("resnet164_bottleneck", 1_727_284),
        ("wide_resnet20_8", 6_871_220),
        ("vgg16_fc3", 15_299_748),
        ("densenetd40k12", 188_092),
        ("densenetd100k12", 800_032),
    ],
)
def test_sizes_of_the_online_papers_networks(name: str, parameters: int) -> None:
    """Released by OKDDip and ONE, 100 classes; densenetd100k12: the DenseNet paper's 0.8 million."""
    assert size(model_dict[name](num_classes=100)) == parameters


def test_the_three_layers_of_okddips_vgg() -> None:
    """As released: each hidden layer is linear, ReLU, dropout; weights from N(0, 0.01), no dropout by itself."""
    classifier = build("vgg16_fc3").classifier
    layers = [module for module in classifier.modules() if not isinstance(module, (nn.Sequential, nn.Identity))]
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]
    assert all(layer.p == 0 for layer in layers if isinstance(layer, nn.Dropout))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
            assert not layer.bias.any()
    names = [name for name in build("vgg16_fc3").state_dict() if name.startswith("classifier")]
    assert names == [f"classifier.{index}.{part}" for index in (1, 4, 6) for part in ("weight", "bias")]


@pytest.mark.parametrize("name", [*THIN, "densenetd100k12"])
def test_thinner_widths(name: str) -> None:
    model = build(name)
    assert model.thinner_widths(1, 1, 3) == model.widths
    half = model.thinner_widths(1, 2, 3)
    assert half[:-3] == model.widths[: len(model.widths) - 3]
    assert all(thin < full for thin, full in zip(half[-3:], model.widths[-3:], strict=True))
    assert size(build(name, widths=half)) < size(model)
    only_last = model.thinner_widths(1, 2, 1)
    assert only_last[:-1] == model.widths[:-1]


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/vit_b_32"])
def test_what_takes_no_widths_cannot_be_thinner(name: str) -> None:
    message = f"--model: {name} cannot be made thinner.* takes no widths"
    with pytest.raises(UsageError, match=message):
        build(name).thinner_widths(1, 2, 3)
    with pytest.raises(UsageError, match=message):
        build(name, widths=(8, 8, 8, 8))


@pytest.mark.parametrize("size_name", EFFICIENTNETS)
@torch.no_grad()
def test_efficientnets_of_other_widths_are_built_alike(size_name: str) -> None:
    """Of the published widths, the same network; of others, the same depth, names, dropouts and normalisation."""
    name = f"torchvision/efficientnet_{size_name}"
    full = build(name)
    same = build(name, widths=full.widths)
    assert str(same) == str(full)
    same.load_state_dict(full.state_dict())
    torch.testing.assert_close(same(images()), full(images()), rtol=0, atol=0)
    thin = build(name, widths=full.thinner_widths(2, 5, 4))
    assert list(thin.state_dict()) == list(full.state_dict())
    for kind in (nn.Dropout, torchvision.ops.StochasticDepth, nn.SiLU):
        assert [str(layer) for layer in layers(thin, kind)] == [str(layer) for layer in layers(full, kind)]
    assert {(norm.eps, norm.momentum) for norm in layers(thin, nn.BatchNorm2d)} == {
        (norm.eps, norm.momentum) for norm in layers(full, nn.BatchNorm2d)
    }


def test_an_efficientnets_share_of_channels_is_rounded_down() -> None:
    """4/5 of b0's rows, not the nearest multiples of 8; a block still expands to six times its input."""
    full = build("torchvision/efficientnet_b0")
    thin = build("torchvision/efficientnet_b0", widths=full.thinner_widths(4, 5, 4))
    children = [child for stage in full.stages[1:] for child in full.parts[stage]]
    assert [channels_of(full, child) for child in children] == [24, 40, 80, 112, 192, 320, 1280]
    assert [channels_of(thin, child) for child in children] == [19, 32, 63, 89, 153, 256, 1024]
    for child in children[:-1]:
        expand = layers(thin.get_submodule(child), nn.Conv2d)[0]
        assert expand.out_channels == 6 * expand.in_channels


def test_pretrained_weights_have_the_published_widths() -> None:
    with pytest.raises(UsageError, match="weights are those of the published widths"):
        build("torchvision/efficientnet_b0", pretrained=True, widths=(16, 24, 40, 112, 640))


@pytest.mark.parametrize("name", ["torchvision/efficientnet_b0", "torchvision/mnasnet0_5"])
@torch.no_grad()
def test_the_pooled_vector_is_that_before_dropout(name: str) -> None:
    features, _ = build(name).train()(images_for(name), is_feat=True)
    torch.testing.assert_close(features[-1], features[-2].mean((2, 3)))


def layers(model: nn.Module, kind: Any) -> list[Any]:
    return [layer for layer in model.modules() if isinstance(layer, kind)]


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "widths", "message"),
    [
        ("resnet8", (16, 16, 32), "expected 4"),
        ("resnet8", (16, 0, 32, 64), "positive"),
        ("ResNet50", (64, 257, 512, 1024, 2048), "multiples of 4"),
        ("ShuffleV1", (24, 240, 240, 960), "growing"),
        ("densenetd40k12", (24, 96, 121, 132), "multiple of 6"),
        ("wide_resnet20_8", (16, 18, 32, 64), "multiples of 4"),
        ("ShuffleV2", (24, 117, 232, 1024), "multiples of 2"),
        ("torchvision/efficientnet_b0", (16, 24, 40, 112), "expected 5"),
    ],
)
def test_impossible_widths_are_refused(name: str, widths: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model_dict[name](num_classes=CLASSES, widths=widths)


@pytest.mark.parametrize(
    ("name", "side"),
    crossed(
        ["vgg8", "resnet8", "MobileNetV2", "ShuffleV1", "ShuffleV2_0_5", "wrn_16_1", "ResNet18"],
        [40, 64],
        ["vgg8", "resnet8"],
        [40],
    ),
)
@torch.no_grad()
def test_other_image_sizes(name: str, side: int) -> None:
    model = build(name)
    features, logits = model(images(side), is_feat=True)
    torch.testing.assert_close(model.classify(features[-2]), logits)


def test_unknown_stages_are_named() -> None:
    model = build("resnet8")
    with pytest.raises(UsageError, match=r"did you mean 'layer2'.*conv1, layer1, layer2, layer3"):
        model.run(images(), "conv1", "layer22")
    with pytest.raises(ValueError, match="comes after"):
        model.run(images(), "layer2", "layer1")


def test_names() -> None:
    assert "resnet8x4" in model_dict
    assert "torchvision/resnet18" in model_dict
    assert "torchvision/nothing" not in model_dict
    assert {f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)} < set(
        model_dict
    )
    with pytest.raises(UsageError, match=r"did you mean 'resnet32x4'\?") as own:
        model_dict["resnet32_x4"]
    assert "torchvision/<name>" in str(own.value)
    assert "torchvision/vgg11" not in str(own.value)
    with pytest.raises(UsageError, match=r"did you mean 'torchvision/resnet50'\?") as foreign:
        model_dict["torchvision/resnet50v"]
    assert "wrn_16_2" not in str(foreign.value)
    assert "\n" not in str(own.value) + str(foreign.value)


def test_a_second_network_of_the_same_name_is_refused() -> None:
    assert isinstance(model_dict, Registry)
    with pytest.raises(ValueError, match="registered twice"):
        model_dict.register("resnet8")(nn.Identity)


@pytest.mark.parametrize("name", [name for name in FOREIGN if "vgg" not in name])  # slow, and built like alexnet
@torch.no_grad()
def test_torchvision_networks_keep_their_names_and_outputs(name: str) -> None:
    config = {"aux_logits": False, "init_weights": False, "transform_input": True} if "googlenet" in name else {}
    theirs = torchvision.models.get_model(name.removeprefix("torchvision/"), num_classes=CLASSES, **config)
    ours = build(name)
    theirs.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = images_for(name)
    torch.testing.assert_close(ours(x), theirs.eval()(x))
    # dropout and stochastic depth follow the mode
    torch.manual_seed(2)
    expected = theirs.train()(x)
    torch.manual_seed(2)
    torch.testing.assert_close(ours.train()(x), expected, rtol=1e-3, atol=1e-4)


def test_torchvision_networks_have_no_preact() -> None:
    with pytest.raises(UsageError, match="preact"):
        build("torchvision/squeezenet1_1")(images(), is_feat=True, preact=True)


@torch.no_grad()
def test_transformers_offer_logits_only() -> None:
    model, x = build("torchvision/vit_b_32"), images(224, batch=1)
    assert (model.has_maps, model.stages, model.num_classes) == (False, (), CLASSES)
    assert model(x).shape == (1, CLASSES)
    assert not any(name.startswith(("net.", "_net")) for name in model.state_dict())
    for use in (lambda: model(x, is_feat=True), lambda: model.classify(x), lambda: model.run(x, "a", "b")):
        with pytest.raises(UsageError, match="only --distill kd"):
            use()


@torch.no_grad()
def test_transformers_follow_mode_and_type() -> None:
    model = build("torchvision/swin_t").double()
    assert model(images(64, batch=1).double()).dtype == torch.float64
    assert all(not module.training for module in model.modules())
    assert all(module.training for module in model.train().modules())


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "googlenet", "efficientnet_b0"])
@torch.no_grad()
def test_pretrained_weights_are_loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    aux = {"aux_logits": True, "init_weights": False, "transform_input": True} if name == "googlenet" else {}
    theirs = torchvision.models.get_model(name, **aux).eval()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *args, **kwargs: theirs.state_dict())

    ours = model_dict[f"torchvision/{name}"](num_classes=1000, pretrained=True).eval()
    torch.testing.assert_close(ours(images(64)), theirs(images(64)))
    assert not any(key.startswith("aux") for key in ours.state_dict())

    few = model_dict[f"torchvision/{name}"](num_classes=CLASSES, pretrained=True).eval()
    assert few(images(64)).shape == (2, CLASSES)
    kept = {key: value for key, value in few.state_dict().items() if value.shape == theirs.state_dict()[key].shape}
    assert len(few.state_dict()) - len(kept) == 2
    torch.testing.assert_close(kept, {key: theirs.state_dict()[key] for key in kept})


def test_pretrained_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)
    with pytest.raises(UsageError, match=r"^torchvision/resnet18: its published weights cannot be had: .*no route"):
        build("torchvision/resnet18", pretrained=True)


def test_published_checkpoints_with_auxiliary_heads_load() -> None:
    published = torchvision.models.get_model("googlenet", num_classes=CLASSES, aux_logits=True, init_weights=False)
    build("torchvision/googlenet").load_state_dict(published.state_dict())
