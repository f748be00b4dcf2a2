"""What every weighting of the teachers promises, by walking ``ensemble_dict``: nothing is asked that it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
import torch
from torch import Tensor

import train_student
from ensemble import EnsembleMethod, TeacherLosses, combine, ensemble_dict, weigh
from ensemble.gram import GradientMethod
from ensemble.qp_solvers import qp_solver_dict
from helper.batch import When
from helper.errors import UsageError
from helper.options import _annotation

Level = Literal["logit", "feature"]
LEVELS = get_args(Level)
SCALES = ("released", "unit")
MANY = [2, 3, 5, 8, 16]
B, C, N = 6, 5, 40
# What the released weights sum to. EBKD: Σ_k (1 − H_k/Σ_j H_j)/K; CAMKD: Σ_k (1 − softmax_k(CE))/(K(K − 1))
RELEASED_SUMS: dict[str, Callable[[int], float]] = {
    "AVERAGE_LOSS": lambda K: 1,
    "EBKD": lambda K: (K - 1) / K,
    "CAMKD": lambda K: 1 / K,
    "AEKD": lambda K: 1,
}
each_method = pytest.mark.parametrize("name", list(ensemble_dict))
each_symmetric = pytest.mark.parametrize("name", [name for name, kind in ensemble_dict.items() if kind.symmetric])
each_level = pytest.mark.parametrize("level", LEVELS)


def random_teachers(K: int, level: Level = "logit", dtype: torch.dtype = torch.float64) -> TeacherLosses:
    """K teachers who disagree."""
    draw = torch.Generator().manual_seed(K)
    losses = torch.rand(K, B, generator=draw, dtype=torch.float64)
    logits = torch.randn(K, B, C, generator=draw, dtype=torch.float64) * 3
    gradients = torch.randn(K, N, generator=draw, dtype=torch.float64) * torch.linspace(0.5, 2, K).unsqueeze(1)
    target = torch.randint(0, C, (B,), generator=draw)
    student = torch.randn(B, C, generator=draw, dtype=torch.float64)
    return TeacherLosses(
        losses.to(dtype), target, level, lambda: logits.to(dtype), lambda: gradients, student_logits=student.to(dtype)
    )


def made(name: str, teachers: TeacherLosses, **settings: Any) -> EnsembleMethod:
    """A method that has seen an example, as before training."""
    method = ensemble_dict[name](**settings)
    method.attach(teachers)
    return method


def changed(
    teachers: TeacherLosses, logits: Tensor | None = None, gradients: Tensor | None = None, order: Tensor | None = None
) -> TeacherLosses:
    """The same teachers with other logits or gradients, or in another order."""
    logits = teachers.logits if logits is None else logits
    gradients = teachers.gradients if gradients is None else gradients
    order = torch.arange(len(teachers.losses)) if order is None else order
    return TeacherLosses(
        teachers.losses[order],
        teachers.target,
        teachers.level,
        lambda: logits[order],
        lambda: gradients[order],
        student_logits=teachers.student_logits,
    )


def assert_usable(method: EnsembleMethod, weights: Tensor, K: int) -> None:
    assert weights.shape in ((K,), (K, B))
    assert weights.isfinite().all()
    assert not method.nonnegative or (weights >= 0).all()


def scales_of(method: EnsembleMethod, K: int) -> tuple[str, ...]:
    """``unit`` is for weights that are known to have a sum."""
    return SCALES if method.total(K) else ("released",)


@each_method
@each_level
@pytest.mark.parametrize("K", MANY)
def test_weights_are_usable_and_sum_as_documented(name: str, level: Level, K: int) -> None:
    teachers = random_teachers(K, level)
    method = made(name, teachers)
    for scale in scales_of(method, K):
        weights, total = weigh(method, teachers, scale), method.total(K)
        assert_usable(method, weights, K)
        if total is not None:
            total = 1 if scale == "unit" else total / (K if method.released_division else 1)
            torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]) * total)


@pytest.mark.parametrize("name", RELEASED_SUMS)
@pytest.mark.parametrize("K", MANY)
def test_weights_sum_as_released(name: str, K: int) -> None:
    total = weigh(ensemble_dict[name](), random_teachers(K), "released").sum(0)
    torch.testing.assert_close(total, torch.ones_like(total) * RELEASED_SUMS[name](K))


@each_symmetric
@each_level
@pytest.mark.parametrize("K", MANY)
def test_the_order_of_the_teachers_does_not_matter(name: str, level: Level, K: int) -> None:
    teachers = random_teachers(K, level)
    method = made(name, teachers)
    for scale in scales_of(method, K):
        weights = weigh(method, teachers, scale)
        for order in (torch.arange(K).flip(0), torch.randperm(K, generator=torch.Generator().manual_seed(1))):
            shuffled = weigh(method, changed(teachers, order=order), scale)
            torch.testing.assert_close(shuffled, weights[order], rtol=1e-6, atol=1e-8)


@each_method
@each_level
@pytest.mark.parametrize("scale", SCALES)
def test_a_single_teacher_counts_fully(name: str, level: Level, scale: str) -> None:
    teachers = random_teachers(1, level)
    weights = weigh(ensemble_dict[name](), teachers, scale)
    torch.testing.assert_close(weights, torch.ones(1, dtype=torch.float64), rtol=0, atol=0)
    torch.testing.assert_close(combine(weights, teachers.losses), teachers.losses.mean())


@each_method
@each_level
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1.0, 100.0, 1e4])
def test_extreme_logits(name: str, level: Level, dtype: torch.dtype, size: float) -> None:
    """No entropy, no overflow, no class with a probability above 0: finite all the same."""
    K = 4
    teachers = random_teachers(K, level, dtype)
    teachers = changed(teachers, logits=(teachers.logits.sign() * size).to(dtype))
    method = made(name, teachers)
    owned = method.parameters() if isinstance(method, torch.nn.Module) else ()
    assert all(each.dtype != torch.bfloat16 for each in owned)  # small steps would be lost
    for scale in scales_of(method, K):
        weights = weigh(method, teachers, scale)
        assert_usable(method, weights, K)
        assert combine(weights, teachers.losses).isfinite()


@each_symmetric
def test_half_precision_logits_are_weighed_in_full(name: str) -> None:
    half = random_teachers(4, dtype=torch.bfloat16)
    full = changed(half, logits=half.logits.double())
    method = made(name, full)
    expected, weights = method.weights(full), method.weights(half)
    torch.testing.assert_close(weights, expected, check_dtype=False, rtol=1e-2, atol=1e-3)
    if name in ("EBKD", "CAMKD"):  # whose weights are made from the logits alone
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)


def assert_equal_parts(method: EnsembleMethod, teachers: TeacherLosses) -> None:
    weights = method.weights(teachers)
    torch.testing.assert_close(weights, weights.mean(0).expand_as(weights), rtol=1e-4, atol=1e-12)


@each_symmetric
@each_level
def test_equal_teachers_count_equally(name: str, level: Level) -> None:
    teachers = random_teachers(5, level)
    assert_equal_parts(made(name, teachers), changed(teachers, order=torch.zeros(5, dtype=torch.long)))


@each_symmetric
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_all_teachers_perfectly_certain(name: str, sign: float) -> None:
    """Without any entropy to share out, and all right or all wrong: equal parts."""
    teachers = changed(random_teachers(4), order=torch.zeros(4, dtype=torch.long))
    certain = sign * 1e4 * torch.nn.functional.one_hot(teachers.target, C).double().expand(4, -1, -1)
    assert_equal_parts(made(name, teachers), changed(teachers, certain, torch.ones(4, N)))


def test_certain_and_right_teachers_count_more() -> None:
    teachers = random_teachers(3)
    sure = teachers.logits.clone()
    sure[1] += 50 * torch.nn.functional.one_hot(teachers.target, C)
    for name in ("EBKD", "CAMKD"):
        weights = ensemble_dict[name]().weights(changed(teachers, sure))
        assert weights.shape == (3, B)  # each sample has its own
        assert (weights[1] >= weights).all()


@pytest.mark.parametrize("shape", [(B, 3), (3, 1), (B,), ()])
def test_weights_of_another_shape_are_refused(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    method = EnsembleMethod()
    monkeypatch.setattr(method, "weights", lambda _: torch.ones(shape))
    with pytest.raises(TypeError, match=r"^EnsembleMethod\.weights: .* neither \[K\] nor \[K, B\]"):
        weigh(method, random_teachers(3), "released")


def test_average_has_one_weight_per_teacher() -> None:
    assert ensemble_dict["AVERAGE_LOSS"]().weights(random_teachers(3)).tolist() == [1 / 3] * 3


@pytest.mark.parametrize("name", [name for name, kind in ensemble_dict.items() if kind.differentiable is not None])
def test_where_gradients_flow_through_weights(name: str) -> None:
    """CAMKD's feature weights teach the student (released); a constant does not."""
    plain = random_teachers(3, "feature")
    logits = plain.logits.clone().requires_grad_()
    weights = weigh(made(name, plain), changed(plain, logits=logits), "released")
    assert weights.requires_grad == ensemble_dict[name].differentiable
    if weights.requires_grad:
        weights[0].sum().backward()
        assert logits.grad is not None
        assert logits.grad.abs().sum() > 0


def test_camkd_with_constant_weights() -> None:
    """The same numbers, through which nothing flows."""
    plain = random_teachers(3, "feature")
    told = changed(plain, logits=plain.logits.clone().requires_grad_())
    flowing, constant = (ensemble_dict["CAMKD"](detach_weights=detach).weights(told) for detach in (False, True))
    assert flowing.requires_grad
    assert not constant.requires_grad
    assert torch.equal(flowing, constant)


@pytest.mark.parametrize("K", [2, 3, 8])
def test_random_weights_are_drawn_anew_by_seed_epoch_and_step(K: int) -> None:
    """A softmax of standard normals that a resumed run, or another process, draws again."""

    teachers = random_teachers(K)

    def drawn(seed: int, epoch: int, step: int) -> Tensor:
        torch.manual_seed(seed)
        method = ensemble_dict["RLW"]()
        torch.rand(7)  # whatever else is drawn
        teachers.when = When(epoch, 100, step, 1000)
        return method.weights(teachers)

    torch.testing.assert_close(drawn(3, 2, 5), drawn(3, 2, 5), rtol=0, atol=0)
    weights = torch.stack([drawn(3, epoch, step) for epoch in range(1, 11) for step in range(1, 101)])  # [1000, K]
    others = torch.stack([drawn(4, epoch, step) for epoch in range(1, 11) for step in range(1, 101)])
    assert len(torch.cat((weights, others)).unique(dim=0)) == 2000
    torch.testing.assert_close(weights.mean(0), torch.full((K,), 1 / K), rtol=0, atol=0.03)
    normals = weights.log() - weights.log().mean(1, keepdim=True)
    assert normals.square().sum(1).mean().item() == pytest.approx(K - 1, rel=0.15)  # chi-squared


@each_level
@pytest.mark.parametrize("K", [2, 3, 8, 16])
@pytest.mark.parametrize("cap", [0.6, 1.0])
def test_aekd_ignores_the_scale_of_the_gradients(level: Level, K: int, cap: float) -> None:
    teachers = random_teachers(K, level)
    weights = ensemble_dict["AEKD"](C=cap).weights(teachers)
    for scale in (1e-12, 1e-9, 1e-6, 1e-3, 1e3, 1e6):
        scaled = changed(teachers, gradients=teachers.gradients * scale)
        method = ensemble_dict["AEKD"](C=cap)
        torch.testing.assert_close(method.weights(scaled), weights, rtol=1e-6, atol=1e-9)
        assert all(value.isfinite() for value in method.diagnostics(scaled, weights).values())


@pytest.mark.parametrize("K", [2, 3, 7, 16])
def test_aekd_between_the_average_and_the_shortest(K: int) -> None:
    """C = 1/K is AVERAGE_LOSS, and the larger C, the shorter the combined gradient."""
    teachers = random_teachers(K)
    average = ensemble_dict["AVERAGE_LOSS"]().weights(teachers)
    torch.testing.assert_close(ensemble_dict["AEKD"](C=1 / K).weights(teachers), average)
    feature = random_teachers(K, "feature")
    torch.testing.assert_close(ensemble_dict["AEKD"](C=1 / K, svm_norm=False).weights(feature), average)
    lengths = []
    for cap in torch.linspace(1 / K, 1, 6).tolist():
        method = ensemble_dict["AEKD"](C=cap)
        weights = method.weights(teachers)
        assert weights.max() <= cap + 1e-6
        lengths.append(method.diagnostics(teachers, weights)["combined_gradient"].item())
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(lengths))


def test_aekd_normalises_at_the_feature_level_unless_told() -> None:
    logit, feature = random_teachers(4, "logit"), random_teachers(4, "feature")
    plain, normalised = (ensemble_dict["AEKD"](svm_norm=norm).weights(logit) for norm in (False, True))
    assert not torch.allclose(plain, normalised, atol=1e-3)
    torch.testing.assert_close(ensemble_dict["AEKD"]().weights(logit), plain)
    torch.testing.assert_close(ensemble_dict["AEKD"]().weights(feature), normalised)


def test_aekd_diagnostics_of_zero_gradients_are_finite() -> None:
    teachers = changed(random_teachers(3), gradients=torch.zeros(3, N))
    method = ensemble_dict["AEKD"]()
    assert all(value == 0 for value in method.diagnostics(teachers, method.weights(teachers)).values())


@each_level
def test_aekd_holds_the_released_solver_against_the_exact_one(level: Level) -> None:
    """On small gradients it stays where it starts, on large ones it finds what ours finds."""
    teachers = random_teachers(3, level)
    for scale, at_start in ((1e-5, 1.0), (1e4, 0.0)):
        # normalised, the gradients are as large as ever
        method = ensemble_dict["AEKD"](C=0.6, qp_solver="svm", svm_norm=False)
        scaled = changed(teachers, gradients=teachers.gradients * scale)
        weights = method.weights(scaled)
        report = {name: value.item() for name, value in method.diagnostics(scaled, weights).items()}
        assert report["at_start"] == at_start
        exact = ensemble_dict["AEKD"](C=0.6, svm_norm=False)
        found = exact.diagnostics(scaled, exact.weights(scaled))
        assert report["exact_combined_gradient"] == pytest.approx(found["combined_gradient"].item(), rel=1e-9)
        assert "at_start" not in found
        longer = report["combined_gradient"] / report["exact_combined_gradient"]
        assert (longer > 1.001) if at_start else longer == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("cap", "K"), [(0.1, 2), (0.3, 3), (0.0, 4), (-1.0, 2), (1.01, 2), (float("nan"), 3)])
def test_aekd_refuses_an_impossible_bound(cap: float, K: int) -> None:
    with pytest.raises(UsageError, match=r"^-C: .*(1/K|to 1)") as caught:
        ensemble_dict["AEKD"](C=cap).require_valid(K)
    assert "\n" not in str(caught.value)
    ensemble_dict["AEKD"](C=cap).require_valid(1)  # a single teacher: -C is ignored


@pytest.mark.parametrize(("cap", "K"), [(0.6, 2), (1.0, 2), (0.3333, 3), (1 / 7, 7), (1.0, 16)])
def test_aekd_accepts_a_possible_bound(cap: float, K: int) -> None:
    ensemble_dict["AEKD"](C=cap).require_valid(K)


def test_every_solver_can_be_chosen() -> None:
    kind, _ = _annotation(ensemble_dict["AEKD"], "qp_solver")
    assert set(get_args(kind)) == set(qp_solver_dict)


@each_method
def test_costly_descriptions_are_made_only_when_asked_for(name: str) -> None:
    """Only AEKD and its like look at gradients; the average and random weights look at nothing."""
    asked: list[str] = []
    plain = random_teachers(3)

    def tell(what: str, value: Tensor) -> Callable[[], Tensor]:
        return lambda: asked.append(what) or value

    teachers = TeacherLosses(
        plain.losses,
        plain.target,
        "logit",
        tell("logits", plain.logits),
        tell("gradients", plain.gradients),
        student_logits=plain.student_logits,
    )
    method = made(name, teachers)
    method.diagnostics(teachers, weigh(method, teachers, "released"))
    expected = {"AVERAGE_LOSS": [], "RLW": [], "EBKD": ["logits"], "CAMKD": ["logits"]}
    expected |= {name: ["gradients"] for name, kind in ensemble_dict.items() if issubclass(kind, GradientMethod)}
    assert asked == expected.get(name, asked)


def test_combine_is_the_weighted_sum_of_batch_means() -> None:
    losses, weights = torch.rand(3, B), torch.rand(3, B)
    assert combine(weights, losses).item() == pytest.approx((weights * losses).sum().item() / B)
    assert combine(weights[:, 0], losses).item() == pytest.approx((weights[:, 0] @ losses.mean(1)).item())


def test_a_name_is_registered_once_and_unknown_ones_are_explained() -> None:
    with pytest.raises(ValueError, match="'AEKD' is registered twice"):
        ensemble_dict.register("AEKD")(EnsembleMethod)
    with pytest.raises(UsageError, match=r"--ensemble_method: unknown value 'EABK'.*AVERAGE_LOSS"):
        ensemble_dict["EABK"]


class Loudest(EnsembleMethod):
    """A method of somebody else: a softmax of the losses."""

    def __init__(self, *, sharpness: Annotated[float, "how much a larger loss counts"] = 1.0) -> None:
        self.sharpness = sharpness

    def weights(self, teachers: TeacherLosses) -> Tensor:
        return (self.sharpness * teachers.losses.detach().mean(1)).softmax(0)


def test_a_new_method_is_a_class_and_a_registration(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ensemble_dict, "_entries", dict(ensemble_dict._entries))
    ensemble_dict.register("LOUDEST")(Loudest)
    with pytest.raises(UsageError, match=r"--sharpness: belongs to --ensemble_method LOUDEST\b.*, not to AVERAGE_LOSS"):
        train_student.main([*tiny, "--sharpness", "2"])
    train_student.main([*tiny, "--ensemble_method", "LOUDEST", "--sharpness", "2"])

    (run,) = (tmp_path / "save" / "students").iterdir()
    assert "LOUDEST" in run.name
    assert "sharpness=2" in run.name
    assert json.loads((run / "parameters.json").read_text())["sharpness"] == 2
    (row,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert row["train_weight_0"] + row["train_weight_1"] == pytest.approx(1)
    assert (run / "result.json").exists()
    assert "their ensemble" in capsys.readouterr().out


def test_weights_that_cancel_out_have_no_unit_scale(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Opposed(Loudest):
        def total(self, teacher_num: int) -> float:
            return 0

    monkeypatch.setattr(ensemble_dict, "_entries", {**ensemble_dict._entries, "OPPOSED": Opposed})
    with pytest.raises(UsageError, match=r"^--kd_scale: unit .* of OPPOSED sum to 0; choose released$"):
        train_student.main([*tiny, "--ensemble_method", "OPPOSED", "--kd_scale", "unit"])
    assert not (tmp_path / "save").exists()
