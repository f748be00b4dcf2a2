"""What every loss between one student and one teacher promises, by walking ``distill_dict``."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from sums import crossed
from torch import Tensor, nn

from distiller_zoo import Distiller, DistillKL, FeatureDistiller, Hint, Inter, Pair, distill_dict
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.seen import Observed, Seen

ON_MAPS = [name for name, kind in distill_dict.items() if issubclass(kind, FeatureDistiller)]
SETTINGS: dict[str, list[dict[str, object]]] = {"inter": [{}, {"convs": True}, {"convs": True, "factor": 1}]}
VARIANTS = [(name, settings) for name in ON_MAPS for settings in SETTINGS.get(name, [{}])]
# (height, width) of student and teacher: equal, twice, half, larger, smaller by no whole factor, single pixels, oblong
SIZES = [
    *(((8, 8), (8, 8)), ((16, 16), (8, 8)), ((4, 4), (8, 8)), ((9, 9), (5, 5)), ((12, 12), (3, 3))),
    *(((5, 5), (7, 7)), ((3, 3), (10, 10)), ((1, 1), (1, 1)), ((1, 1), (5, 5)), ((7, 7), (1, 1)), ((2, 2), (1, 1))),
    *(((8, 4), (4, 8)), ((8, 4), (4, 4)), ((3, 8), (6, 8)), ((7, 2), (5, 3))),
]
CHANNELS = [(6, 10), (10, 6), (4, 4), (1, 3), (5, 1)]
NEIGHBOURS = [((16, 16), (16, 16)), ((16, 16), (8, 8)), ((8, 8), (16, 16)), ((12, 8), (6, 10))]
Size = tuple[int, int]
SQUARED = [each for each in VARIANTS if getattr(distill_dict[each[0]], "distance", None) is FeatureDistiller.distance]
each_loss = pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
each_squared_error = pytest.mark.parametrize(("name", "settings"), SQUARED, ids=str)
B = 8


def shapes_of(channels: int, size: Size) -> list[tuple[int, ...]]:
    """What a network with three equal stages has, so that any layer will do."""
    return [(channels, *size)] * 3 + [(channels,)]


def make(name: str, mine: tuple[int, Size], theirs: tuple[int, Size], **settings: object) -> FeatureDistiller:
    kind: type[Distiller] = distill_dict[name]
    torch.manual_seed(0)
    adapter = kind(Pair(shapes_of(*mine), shapes_of(*theirs)), **settings)
    assert isinstance(adapter, FeatureDistiller)
    return adapter


def maps(channels: int, size: Size, seed: int = 0) -> Tensor:
    return torch.randn(B, channels, *size, generator=torch.Generator().manual_seed(seed))


def compared(adapter: FeatureDistiller, student: Tensor, teacher: Tensor) -> Tensor:
    """The loss as the training script asks for it."""
    batch = Batch(torch.zeros(B, 3, 8, 8), torch.zeros(B, dtype=torch.int64))
    return adapter(Seen(maps=(student,)), Seen(maps=(teacher,)), batch, When(1, 1))


CLASSES = 5


class Head(nn.Module):
    """A classifier of maps and of vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, CLASSES)

    def classify(self, maps: Tensor) -> Tensor:
        return self.fc(maps.mean((2, 3)))

    def classify_vector(self, vector: Tensor) -> Tensor:
        return self.fc(vector)


def observed(width: int, size: Size, seed: int) -> Observed:
    """What a network with three stages that halve their maps would have made of a batch."""
    torch.manual_seed(seed)
    sizes = [tuple(max(1, side >> stage) for side in size) for stage in range(3)]
    features = [torch.randn(B, width, *each).requires_grad_() for each in sizes]
    before = [torch.randn(B, width, *each).requires_grad_() for each in sizes]
    vector, cam = torch.randn(B, width).requires_grad_(), torch.randn(B, CLASSES, *sizes[-1]).requires_grad_()
    logits = torch.randn(B, CLASSES).requires_grad_()
    return Observed(logits, [*features, vector], Head(width), [*before, vector], cam)


def refusal(name: str, pair: Pair) -> str:
    """In one line, what a loss has against two networks of different kinds."""
    try:
        distill_dict[name](pair)
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", distill_dict)
@pytest.mark.parametrize(("sizes", "widths"), crossed(NEIGHBOURS, CHANNELS, NEIGHBOURS[-1:], CHANNELS[:1]), ids=str)
def test_every_loss_gets_what_it_declares(name: str, sizes: tuple[Size, Size], widths: tuple[int, int]) -> None:
    """And nothing else; it answers with a finite value for each sample, or for the batch, that teaches the student."""
    (mine, theirs), (width, teacher_width) = sizes, widths
    student, teacher = observed(width, mine, 0), observed(teacher_width, theirs, 1)
    shapes = [[tuple(each.shape[1:]) for each in network.features] for network in (student, teacher)]
    torch.manual_seed(0)
    pair = Pair(*shapes, CLASSES, torch.arange(50) % CLASSES, B)
    if width != teacher_width and (reason := refusal(name, pair)):
        assert re.fullmatch(r"--distill: .*; choose .*", reason)
        return
    loss = distill_dict[name](pair).train()
    seen = student.seen(loss.student)
    batch = Batch(torch.zeros(B, 3, 8, 8), torch.arange(B) % CLASSES, places=torch.arange(B))
    values = loss(seen, teacher.seen(loss.teacher), batch, When(1, 2))
    assert values.shape in ((B,), ())
    assert values.isfinite().all()
    slopes = torch.autograd.grad(values.mean(), seen.tensors(), allow_unused=True, materialize_grads=True)
    assert all(slope.isfinite().all() for slope in slopes)
    if teacher_width == 1 and not any(slope.any() for slope in slopes):
        return  # a cosine of single numbers is constant
    assert any(slope.any() for slope in slopes)
    # else a weighting would look at rounding errors
    assert loss.sums_to_zero == all(slope.sum(0).norm() <= 1e-5 * slope.norm() for slope in slopes)
    learning = [each for each in loss.parameters() if each.requires_grad]
    again = loss(seen, teacher.seen(loss.teacher), batch, When(1, 2))
    learnt = torch.autograd.grad(again.mean(), learning) if learning else ()
    assert all(slope.isfinite().all() for slope in learnt)
    assert not learnt or any(slope.any() for slope in learnt)
    if loss.broadcasts:
        together = Seen(logits=torch.stack([teacher.logits, -teacher.logits]))
        assert type(loss).on_logits()
        if type(loss).slopes is Distiller.slopes:
            seen = Seen(logits=torch.stack([student.logits] * 2))
        torch.testing.assert_close(loss(seen, together, batch, When(1, 2))[0], values)


@pytest.mark.parametrize("name", distill_dict)
def test_every_loss_under_autocast(name: str) -> None:
    """What networks make in bfloat16 is compared, and teaches."""
    with torch.autocast("cpu", torch.bfloat16):
        student, teacher = (in_bfloat16(observed(6, (8, 8), seed)) for seed in (0, 1))
        shapes = [[tuple(each.shape[1:]) for each in network.features] for network in (student, teacher)]
        loss = distill_dict[name](Pair(*shapes, CLASSES, torch.arange(50) % CLASSES, B)).train()
        seen = student.seen(loss.student)
        batch = Batch(torch.zeros(B, 3, 8, 8), torch.arange(B) % CLASSES, places=torch.arange(B))
        values = loss(seen, teacher.seen(loss.teacher), batch, When(1, 2))
    assert values.isfinite().all()
    slopes = torch.autograd.grad(values.mean(), seen.tensors(), allow_unused=True)
    assert all(slope is None or slope.isfinite().all() for slope in slopes)
    assert any(slope is not None and slope.any() for slope in slopes)


def in_bfloat16(one: Observed) -> Observed:
    """The same numbers, rounded."""

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.detach().bfloat16().requires_grad_()

    features, before = ([rounded(each) for each in some] for some in (one.features, one.before))
    assert one.cam is not None
    return Observed(rounded(one.logits), features, one.network, before, rounded(one.cam))


@each_loss
@pytest.mark.parametrize(("sizes", "widths"), crossed(SIZES, CHANNELS, SIZES[-1:], CHANNELS[:1]), ids=str)
def test_any_two_maps_can_be_compared(
    name: str, settings: dict[str, object], sizes: tuple[Size, Size], widths: tuple[int, int]
) -> None:
    (mine, theirs), (width, teacher_width) = sizes, widths
    adapter = make(name, (width, mine), (teacher_width, theirs), **settings).train()
    student, teacher = maps(width, mine).requires_grad_(), maps(teacher_width, theirs, seed=1)
    adapted = adapter.adapt(student)
    loss = adapter.distance(adapted, teacher)
    read = adapter.as_teacher_reads(adapted)
    assert read is None or read.shape[:2] == teacher.shape[:2]
    assert loss.shape == (B,)
    assert loss.isfinite().all()

    loss.mean().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert all(parameter.grad is not None for parameter in adapter.parameters() if parameter.requires_grad)


@each_squared_error
@pytest.mark.parametrize(("mine", "theirs"), SIZES, ids=str)
def test_the_error_is_the_mean_over_the_map(name: str, settings: dict[str, object], mine: Size, theirs: Size) -> None:
    adapter = make(name, (6, mine), (10, theirs), **settings).eval()
    student, teacher = maps(6, mine), maps(10, theirs, seed=1)
    torch.testing.assert_close(
        compared(adapter, student, teacher), (adapter.adapt(student) - teacher).square().mean((1, 2, 3))
    )


@each_loss
@pytest.mark.parametrize(("mine", "theirs"), SIZES, ids=str)
def test_each_sample_by_itself(name: str, settings: dict[str, object], mine: Size, theirs: Size) -> None:
    adapter = make(name, (6, mine), (10, theirs), **settings).eval()
    student, teacher = maps(6, mine), maps(10, theirs, seed=1)
    plain = compared(adapter, student, teacher)
    others = torch.arange(B) != 2
    for side in (student, teacher):
        side[2] = 3 * side[2].abs() + 1
        moved = compared(adapter, student, teacher)
        torch.testing.assert_close(moved[others], plain[others])
        assert (name, settings) not in SQUARED or not torch.isclose(moved[2], plain[2])
        plain = moved


@each_squared_error
@pytest.mark.parametrize(("mine", "theirs"), SIZES, ids=str)
def test_zero_for_a_perfect_imitation(name: str, settings: dict[str, object], mine: Size, theirs: Size) -> None:
    adapter = make(name, (6, mine), (10, theirs), **settings).eval()
    student = maps(6, mine)
    adapted = adapter.adapt(student).detach()
    assert (compared(adapter, student, adapted) == 0).all()
    assert (compared(adapter, student, adapted + 1) > 0).all()


@each_squared_error
def test_half_precision_maps_are_compared_in_full(name: str, settings: dict[str, object]) -> None:
    """Squares of 1e3 overflow in float16 and round coarsely in bfloat16."""
    adapter = make(name, (4, (4, 4)), (4, (4, 4)), **settings)
    for dtype in (torch.float16, torch.bfloat16):
        mine = (1e3 * maps(4, (4, 4))).to(dtype)
        loss = adapter.distance(mine, torch.zeros_like(mine))
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, mine.float().square().mean((1, 2, 3)))


@pytest.mark.parametrize("name", ON_MAPS)
def test_a_layer_without_a_map_is_refused(name: str) -> None:
    kind = distill_dict[name]
    mine, theirs = shapes_of(4, (4, 4)), shapes_of(6, (4, 4))[1:]  # the teacher has one stage less
    if "hint_layer" in inspect.signature(kind).parameters:
        for layer in (2, 3, 9, -1, -4, -9):
            with pytest.raises(
                UsageError, match=rf"^--hint_layer: {layer} is no feature map of the .*; choose "
            ) as error:
                kind(Pair(mine, theirs), hint_layer=layer)
            assert "\n" not in str(error.value)
        for layer in (0, 1, -2, -3):
            kind(Pair(mine, theirs), hint_layer=layer)
    for pair in (([(4,)], theirs), (mine, [(4,)])):
        with pytest.raises(UsageError):
            kind(Pair(*pair))


def test_the_bottleneck_has_a_width() -> None:
    shapes = shapes_of(8, (4, 4))
    for factor in (0, -1):
        with pytest.raises(UsageError, match=f"^--factor: .*{factor}"):
            Inter(Pair(shapes, shapes), convs=True, factor=factor)
    assert Inter(Pair(shapes, shapes), convs=True, factor=100).adapt(maps(8, (4, 4))).shape == (B, 8, 4, 4)


@pytest.mark.parametrize(
    ("mine", "theirs", "kind", "kernel"),
    [
        (16, 8, nn.Conv2d, 3),
        (4, 8, nn.ConvTranspose2d, 4),
        (8, 8, nn.Conv2d, 1),
        (9, 5, nn.Conv2d, 5),
        (32, 8, nn.Conv2d, 25),
        (5, 7, nn.Conv2d, 3),
    ],
)
def test_hint_regresses_as_released(mine: int, theirs: int, kind: type[nn.Module], kernel: int) -> None:
    adapter = make("hint", (6, (mine, mine)), (10, (theirs, theirs)))
    assert isinstance(adapter, Hint)
    conv, norm, relu = adapter.regressor
    assert type(conv) is kind
    assert conv.kernel_size == (kernel, kernel)
    assert (type(norm), type(relu)) == (nn.BatchNorm2d, nn.ReLU)


@pytest.mark.parametrize(("mine", "theirs"), SIZES, ids=str)
def test_inter_embeds_as_released(mine: Size, theirs: Size) -> None:
    adapter = make("inter", (6, mine), (10, theirs)).train()
    student = maps(6, mine)
    if mine[0] >= theirs[0] and mine[1] >= theirs[1]:
        resized = F.adaptive_avg_pool2d(student, theirs)
    else:
        resized = F.interpolate(student, theirs, mode="bilinear")
    (weight,) = (parameter for parameter in adapter.parameters() if parameter.ndim == 4)
    embedded = F.batch_norm(F.conv2d(resized, weight), None, None, training=True).relu()
    torch.testing.assert_close(adapter.adapt(student), embedded)
    assert adapter.as_teacher_reads(student) is student


@pytest.mark.parametrize("factor", [1, 2, 4, 9])
def test_inter_with_a_bottleneck(factor: int) -> None:
    """As released: narrower than the student's map, whatever the teacher's width."""
    adapter = make("inter", (6, (4, 4)), (8, (4, 4)), convs=True, factor=factor)
    kernels = [tuple(parameter.shape) for parameter in adapter.parameters() if parameter.ndim == 4]
    narrow = max(1, 6 // factor)
    assert kernels == [(narrow, 6, 1, 1), (narrow, narrow, 3, 3), (8, narrow, 1, 1)]


@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_kl(T: float) -> None:
    student, teachers = torch.randn(B, 7).double(), torch.randn(3, B, 7).double()
    loss = DistillKL(T)(student, teachers)
    p, q = (teachers / T).softmax(-1), (student / T).softmax(-1)
    assert loss.shape == (3, B)
    torch.testing.assert_close(loss, T**2 * (p * (p / q).log()).sum(-1))
    torch.testing.assert_close(DistillKL(T)(student, student), torch.zeros(B).double(), rtol=0, atol=1e-12)
    assert (loss > 0).all()
    # logits are known up to a constant
    torch.testing.assert_close(DistillKL(T)(student + 5, teachers - 3), loss)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_kl_of_extreme_logits(dtype: torch.dtype) -> None:
    """Also for peers, who get a gradient through the target."""
    student = (1e4 * torch.randn(B, 7).sign()).to(dtype).requires_grad_()
    peer = (-student.detach()).requires_grad_()
    loss = DistillKL(1.0)(student, peer)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert loss.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    for logits in (student, peer):
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
