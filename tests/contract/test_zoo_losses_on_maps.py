"""What the losses on maps promise beyond the contract of all losses: invariances, stages, zeros, refusals."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from distiller_zoo import Distiller, Pair, distill_dict
from distiller_zoo.maps import StagesDistiller, pooled
from distiller_zoo.reviewkd import context_loss
from distiller_zoo.semckd import error
from distiller_zoo.sp import gram
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.machine import autocast
from helper.seen import Observed

B, CLASSES = 8, 5
BATCH = Batch(torch.zeros(B, 3, 8, 8), torch.arange(B) % CLASSES)
Maps = list[Tensor]
WITHOUT_PARAMETERS = ("at", "sp", "nst", "fsp", "catkd")
ALL = (*WITHOUT_PARAMETERS, "vid", "ab", "reviewkd", "semckd")
each_loss = pytest.mark.parametrize("name", ALL)
SIZES = [((16, 16), (8, 8)), ((8, 8), (16, 16)), ((12, 8), (6, 10)), ((9, 12), (10, 8))]


def pyramid(size: tuple[int, int] = (16, 16), width: int = 6, depth: int = 4, seed: int = 0) -> Maps:
    """A stem and stages that halve their maps and have more and more channels; the last map is the smallest."""
    source = torch.Generator().manual_seed(seed)
    sizes = [tuple(max(1, side >> level) for side in size) for level in range(depth)]
    return [
        torch.randn(B, width * (level + 1), *each, generator=source, dtype=torch.float64)
        for level, each in enumerate(sizes)
    ]


def observed(maps: Maps) -> Observed:
    """What a network would have made of a batch, whose maps these are before and after their ReLU alike."""
    vector = maps[-1].mean((2, 3))
    features = [*maps, vector]
    weights = torch.linspace(-1, 1, CLASSES * vector.shape[1], dtype=vector.dtype).view(CLASSES, -1)
    cam = torch.einsum("kc,bchw->bkhw", weights.to(maps[-1].dtype), maps[-1])
    return Observed(vector @ weights.to(vector.dtype).T, features, nn.Identity(), features, cam)


def make(name: str, student: Maps, teacher: Maps, **settings: object) -> Distiller:
    shapes = [[tuple(each.shape[1:]) for each in observed(maps).features] for maps in (student, teacher)]
    torch.manual_seed(0)
    kind: type[Distiller] = distill_dict[name]
    return kind(Pair(*shapes, CLASSES, None, B), **settings).double()


def compared(loss: Distiller, student: Maps, teacher: Maps) -> Tensor:
    mine, theirs = observed(student).seen(loss.student), observed(teacher).seen(loss.teacher)
    values: Tensor = loss(mine, theirs, BATCH, When(1, 1))
    return values


def value(name: str, student: Maps, teacher: Maps) -> Tensor:
    return compared(make(name, student, teacher), student, teacher)


def widths_of(name: str) -> tuple[int, int]:
    return (6, 6) if name == "fsp" else (6, 10)


def scaled(maps: Maps, seed: int = 9) -> Maps:
    """Each sample's maps times a number of its own."""
    factors = torch.rand(len(maps), B, 1, 1, 1, generator=torch.Generator().manual_seed(seed)).double() * 100 + 1e-3
    return [each * factor for each, factor in zip(maps, factors, strict=True)]


# ---- what each one does not see


@pytest.mark.parametrize("name", ["at", "nst", "catkd"])
def test_the_scale_of_a_samples_maps(name: str) -> None:
    student, teacher = pyramid(), pyramid(width=10, seed=1)
    plain = value(name, student, teacher)
    torch.testing.assert_close(value(name, scaled(student), teacher), plain)
    torch.testing.assert_close(value(name, student, scaled(teacher)), plain)


def test_catkd_without_normalising_is_the_error_of_pooled_maps() -> None:
    student, teacher = pyramid(), pyramid(width=6, seed=1)
    loss = make("catkd", student, teacher, cam_normalize=False)
    cams = [observed(maps).cam for maps in (student, teacher)]
    mine, theirs = (pooled(cam, (2, 2)) for cam in cams if cam is not None)
    torch.testing.assert_close(compared(loss, student, teacher), (mine - theirs).square().mean((1, 2, 3)))


def test_at_sees_neither_signs_nor_the_order_of_channels() -> None:
    student, teacher = pyramid(), pyramid(width=10, seed=1)
    turned = [-each.flip(1) for each in student]
    torch.testing.assert_close(value("at", turned, teacher), value("at", student, teacher))


def test_sp_does_not_see_rotations_and_scale_of_all_features() -> None:
    student, teacher = pyramid(), pyramid(width=10, seed=1)
    last = student[-1].flatten(1)
    rotation, _ = torch.linalg.qr(torch.randn(last.shape[1], last.shape[1], dtype=torch.float64))
    turned = [*student[:-1], (7 * last @ rotation).view_as(student[-1])]
    torch.testing.assert_close(value("sp", turned, teacher), value("sp", student, teacher))


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_inner_products_however_maps_lie_in_memory(form: torch.memory_format) -> None:
    maps = pyramid()[-1][:3, :2].to(memory_format=form).requires_grad_()
    torch.testing.assert_close(gram(maps), torch.einsum("bchw,dchw->bd", maps, maps))
    assert torch.autograd.gradcheck(gram, maps)
    assert torch.autograd.gradgradcheck(gram, maps)


@pytest.mark.parametrize("name", ["sp", "semckd"])
def test_losses_between_samples_follow_their_order(name: str) -> None:
    student, teacher = pyramid(), pyramid(width=10, seed=1)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(3))
    mixed = value("sp", [each[order] for each in student], [each[order] for each in teacher])
    torch.testing.assert_close(mixed, value("sp", student, teacher)[order])
    assert value(name, student, teacher).shape == (B,)


def test_nst_does_not_see_the_order_of_channels() -> None:
    student, teacher = pyramid(), pyramid(width=10, seed=1)
    plain = value("nst", student, teacher)
    torch.testing.assert_close(value("nst", [each.flip(1) for each in student], teacher), plain)
    torch.testing.assert_close(value("nst", student, [each.flip(1) for each in teacher]), plain)
    assert (plain > 0).all()


def test_fsp_does_not_see_where_something_is() -> None:
    """As long as it is at the same place in all stages."""
    student, teacher = pyramid(), pyramid(seed=1)
    turned = [each.flip(2, 3) for each in student]
    torch.testing.assert_close(value("fsp", turned, teacher), value("fsp", student, teacher))


@pytest.mark.parametrize("name", WITHOUT_PARAMETERS)
def test_nothing_to_learn_from_an_equal(name: str) -> None:
    maps = pyramid()
    torch.testing.assert_close(value(name, maps, maps), torch.zeros(B).double(), rtol=0, atol=1e-12)


# ---- what the ones with networks of their own do


def test_ab_asks_for_the_teachers_signs_by_a_margin() -> None:
    teacher = pyramid(seed=1)
    assert not list(make("ab", teacher, teacher).parameters())
    assert not value("ab", [2 * each.sign() for each in teacher], teacher).any()
    small = value("ab", [0.5 * each.sign() for each in teacher], teacher)
    sizes = [each[0].numel() for each in teacher[1:]]
    expected = sum(0.25 * 0.003 * size * 2.0**-later for later, size in enumerate(reversed(sizes)))
    torch.testing.assert_close(small, torch.full((B,), float(expected)).double())


def test_vid_learns_the_variance() -> None:
    """At ``σ² = ⟨(μ − t)²⟩`` of a channel its gradient is 0, below and above it points there."""
    student, teacher = pyramid(), pyramid(width=10, seed=1)
    loss = make("vid", student, teacher)
    slopes = []
    for factor in (0.5, 1.0, 2.0):
        for gaussian, mine, theirs in zip(loss.stages, student[1:], teacher[1:], strict=True):
            with torch.no_grad():
                errors = (gaussian(mine)[0] - theirs).square().mean((0, 2, 3))
                gaussian.log_scale.copy_((factor * errors - 1e-5).expm1().log())
        loss.zero_grad()
        compared(loss, student, teacher).mean().backward()
        slopes.append(torch.cat([gaussian.log_scale.grad for gaussian in loss.stages]))
    assert (slopes[0] < 0).all()
    torch.testing.assert_close(slopes[1], torch.zeros_like(slopes[1]), rtol=0, atol=1e-12)
    assert (slopes[2] > 0).all()


def test_reviewkd_compares_a_stage_with_the_same_and_later_ones() -> None:
    student, teacher = pyramid(), pyramid(width=10, seed=1)
    loss = make("reviewkd", student, teacher)
    for stage in range(1, 4):
        changed = [*teacher]
        changed[stage] = changed[stage].flip(0)
        mine = [each.clone().requires_grad_() for each in student]
        gap = compared(loss, mine, changed) - compared(loss, mine, teacher)
        slopes = torch.autograd.grad(gap.sum(), mine[1:], allow_unused=True, materialize_grads=True)
        reached = [slope.abs().max() > 1e-12 for slope in slopes]
        assert reached == [later >= stage for later in range(1, 4)]


def test_reviewkds_distance_is_a_mean_over_sizes() -> None:
    gaps = torch.full((B, 3, 9, 7), 0.5)
    torch.testing.assert_close(context_loss(gaps), torch.full((B,), 0.25))
    checkers = torch.tensor([1.0, -1.0]).repeat(4).expand(B, 3, 8, 8)  # vanishes when pooled
    torch.testing.assert_close(context_loss(checkers), torch.full((B,), 1 / 1.875))
    torch.testing.assert_close(context_loss(checkers[:, :, :1, :1]), torch.ones(B))


def test_semckd_attends_to_stages_by_the_temperature() -> None:
    student, teacher = pyramid(), pyramid(width=10, seed=1)
    sharp, even = (compared(make("semckd", student, teacher, soft=soft), student, teacher) for soft in (1e-4, 1e6))
    loss = make("semckd", student, teacher)
    errors = [
        min_and_mean(loss, projections, mine, teacher[1:])
        for projections, mine in zip(loss.projections, student[1:], strict=True)
    ]
    torch.testing.assert_close(even, torch.stack([mean for _, mean in errors]).mean(0), rtol=1e-5, atol=0)
    assert (sharp >= torch.stack([least for least, _ in errors]).mean(0) * (1 - 1e-6)).all()
    assert not torch.allclose(sharp, even)


def min_and_mean(
    loss: Distiller, projections: nn.ModuleList, mine: Tensor, theirs: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Over the teacher's stages, of the squared errors of one of the student's."""
    errors = torch.stack([error(project, mine, each) for project, each in zip(projections, theirs, strict=True)])
    return errors.min(0).values, errors.mean(0)


def test_all_of_semckd_learns() -> None:
    """Of more than a few samples, whose networks have more than a few hidden units."""
    source = torch.Generator().manual_seed(0)
    student, teacher = (
        [torch.randn(64, width, side, side, generator=source).relu() for side in (8, 4, 2)] for width in (3, 5)
    )
    shapes = [[tuple(each.shape[1:]) for each in maps] + [(4,)] for maps in (student, teacher)]
    torch.manual_seed(0)
    loss = distill_dict["semckd"](Pair(*shapes, CLASSES, None, 64))
    seen = (observed(maps).seen(loss.student) for maps in (student, teacher))
    loss(*seen, BATCH, When(1, 1)).mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in loss.parameters())


def test_semckd_fits_one_batch_size() -> None:
    student, teacher = pyramid(), pyramid(width=10, seed=1)
    loss = make("semckd", student, teacher)
    fewer = [[each[:5] for each in maps] for maps in (student, teacher)]
    with pytest.raises(UsageError, match=r"^--distill: semckd was built for 8 samples at once and got 5$"):
        compared(loss, *fewer)
    shapes = [tuple(each.shape[1:]) for each in observed(student).features]
    for size in (0, 7):
        with pytest.raises(UsageError, match=rf"^--batch_size: {size} samples are too few .*; choose 8 or more$"):
            distill_dict["semckd"](Pair(shapes, shapes, CLASSES, None, size))


# ---- what all of them promise


@pytest.mark.parametrize("name", ["at", "nst", "vid", "ab", "reviewkd", "fsp"])
def test_stages_are_paired_from_the_last_one(name: str) -> None:
    """The first ones of the deeper network are left out."""
    widths = widths_of(name)
    student, teacher = pyramid(width=widths[0]), pyramid(width=widths[1], seed=1)
    plain = value(name, student, teacher)
    assert issubclass(distill_dict[name], StagesDistiller)
    more = [torch.randn(B, 3, 20, 20, dtype=torch.float64), torch.randn(B, 7, 18, 18, dtype=torch.float64)]
    skipped = 0 if name == "fsp" else 1  # the stem comes first
    for side in (0, 1):
        maps = [student, teacher]
        maps[side] = [*maps[side][:skipped], *more, *maps[side][skipped:]]
        torch.testing.assert_close(value(name, *maps), plain)


@each_loss
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_maps_of_any_two_sizes(name: str, sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    widths = widths_of(name)
    student, teacher = (pyramid(size, width, 3, seed=width) for size, width in zip(sizes, widths, strict=True))
    values = value(name, [each.requires_grad_() for each in student], teacher)
    assert values.shape == (B,)
    assert values.isfinite().all()
    (slopes,) = torch.autograd.grad(values.mean(), student[-1:])
    assert slopes.isfinite().all()
    assert slopes.any()


@each_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_maps_of_zeros_have_usual_gradients(name: str, dtype: torch.dtype) -> None:
    """A sample or a channel without activity; released gradients are up to 5e10 there."""
    widths = widths_of(name)
    student, teacher = ([each.to(dtype) for each in pyramid(width=width, seed=width)] for width in widths)
    loss = make(name, student, teacher).to(dtype)
    for mine, theirs in zip(student, teacher, strict=True):
        mine[0], mine[:, 0], theirs[1], theirs[:, 1] = 0, 0, 0, 0
    for maps, limit in ((student, 10.0), ([torch.zeros_like(each) for each in student], float("inf"))):
        mine = [each.requires_grad_() for each in maps]
        values = compared(loss, mine, teacher)
        slopes = torch.autograd.grad(values.mean(), [*mine, *loss.parameters()], allow_unused=True)
        assert values.isfinite().all()
        assert all(slope is None or (slope.isfinite().all() and slope.abs().max() <= limit) for slope in slopes)


@each_loss
def test_half_precision_maps_are_compared_in_full(name: str) -> None:
    """Under autocast, too, those without parameters round nothing."""
    student, teacher = pyramid(), pyramid(width=widths_of(name)[1], seed=1)
    loss = make(name, student, teacher).float()
    seen = observed(student).seen(loss.student), observed(teacher).seen(loss.teacher)
    rounded = [each.with_tensors([tensor.bfloat16() for tensor in each.tensors()]) for each in seen]
    with autocast(torch.device("cpu"), "bf16"):
        values = loss(*rounded, BATCH, When(1, 1))
    assert values.dtype == torch.float32
    single = [each.with_tensors([tensor.float() for tensor in each.tensors()]) for each in rounded]
    exact = loss(*single, BATCH, When(1, 1))
    tolerance = 1e-6 if name in WITHOUT_PARAMETERS else 0.05
    torch.testing.assert_close(values, exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "option", "number"),
    [("catkd", "cam_resolution", 0), ("semckd", "soft", 0.0), ("reviewkd", "distill_warmup", -1)],
)
def test_hyperparameters_that_make_no_sense_are_refused(name: str, option: str, number: float) -> None:
    with pytest.raises(UsageError, match=rf"^--{option}: expected a number [^\n]*, got {number:g}$"):
        make(name, pyramid(), pyramid(), **{option: number})


@pytest.mark.parametrize("name", [name for name in ALL if issubclass(distill_dict[name], StagesDistiller)])
def test_networks_without_stages_are_refused(name: str) -> None:
    for pair in (([(4,)], [(5, 2, 2), (6, 1, 1), (6,)]), ([(5, 2, 2), (6, 1, 1), (6,)], [(4,)])):
        with pytest.raises(UsageError, match=r"^--distill: [^\n]*; choose "):
            distill_dict[name](Pair(*pair, CLASSES, None, B))


def test_fsp_refuses_stages_of_other_widths() -> None:
    with pytest.raises(UsageError, match=r"^--distill: fsp .* 6,12,18,24 and 10,20,30,40 channels; choose [^\n]*$"):
        make("fsp", pyramid(), pyramid(width=10))
