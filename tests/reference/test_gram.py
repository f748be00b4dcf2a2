"""Weightings in gradient space against theorems, torchjd's values and references without regularisation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ensemble import TeacherLosses, ensemble_dict, gram, min_norm, weigh
from ensemble.alignedmtl import solve_alignedmtl
from ensemble.base import NOTHING
from ensemble.cagrad import solve_cagrad
from ensemble.dualproj import solve_dualproj
from ensemble.gram import eigen, jacobi, unit_lengths
from ensemble.imtlg import solve_imtlg
from ensemble.nashmtl import solve_nash
from ensemble.upgrad import solve_upgrad
from helper.errors import UsageError

CASES = json.loads((Path(__file__).parents[1] / "data" / "weightings.json").read_text())["gram"]
SOLVERS: dict[str, Callable[[Tensor], Tensor]] = {
    "UPGRAD": solve_upgrad,
    "DUALPROJ": solve_dualproj,
    "CAGRAD": lambda gram: solve_cagrad(gram, 0.5),
    "IMTLG": solve_imtlg,
    "ALIGNEDMTL": lambda gram: solve_alignedmtl(gram, "min"),
    "NASHMTL": lambda gram: solve_nash(gram) / solve_nash(gram).sum(),
}
NO_CONFLICT = ("UPGRAD", "DUALPROJ")
each_case = pytest.mark.parametrize("case", CASES, ids=[f"{case['kind']}-{len(case['gram'])}" for case in CASES])
each_solver = pytest.mark.parametrize("name", SOLVERS)
each_size = pytest.mark.parametrize("K", range(2, 9))


@pytest.fixture(params=["host", "device", "path"])
def solved_on(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on the host, as on a device, and as more gradients are dealt with than whose supports can all be tried."""
    monkeypatch.setattr(min_norm, "on_host", lambda gram: request.param == "host")
    monkeypatch.setattr(gram, "ALL_SUPPORTS", 0 if request.param == "path" else 8)
    return request.param


all_ways = pytest.mark.usefixtures("solved_on")


def matrix(case: dict) -> Tensor:
    return torch.tensor(case["gram"], dtype=torch.float64)


def numbers(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_grams(K: int, count: int = 6) -> Iterator[Tensor]:
    """Conflicting, agreeing and opposed gradients, few numbers, lengths of all magnitudes."""
    draw = torch.Generator().manual_seed(K)
    for number in range(count):
        plain = torch.randn(K, (40, 40, 40, K, K + 1, 3)[number % 6], generator=draw, dtype=torch.float64)
        together = (0, 2, -0.3, 0, 0.5, 0)[number % 6] * plain[:1]
        lengths = torch.logspace(0, -6, K, dtype=torch.float64) if number % 6 == 4 else torch.ones(K)
        gradients = (plain + together) * lengths.unsqueeze(1)
        yield gradients @ gradients.T


@each_case
@all_ways
def test_golden_projections(case: dict) -> None:
    """The reference has a relative ridge of 1e-10, which is not small beside the shortest of ``row_scales``."""
    given = matrix(case)
    trace = given.trace()
    ridge = 1e-10 * trace * torch.eye(len(given)) if case["kind"] == "row_scales" else 0
    for name, solve in (("upgrad", solve_upgrad), ("dualproj", solve_dualproj)):
        w, expected = solve(given + ridge), numbers(case["reference"][f"{name}_products_trace1"])
        torch.testing.assert_close(given @ w / trace, expected, rtol=0, atol=1e-6)


@each_case
@all_ways
def test_golden_projections_with_torchjds_regularisation(case: dict) -> None:
    """1e-4 on trace 1: our solver on its problem gives its weights."""
    given = matrix(case) / matrix(case).trace()
    ridge = 1e-4 * torch.eye(len(given), dtype=torch.float64)
    for name, ones in (("UPGrad", torch.eye(len(given))), ("DualProj", torch.ones(1, len(given)))):
        lower = ones.double() / len(given)
        w = (lower + gram.rise_above((given + ridge).unsqueeze(0), lower)).sum(0)
        torch.testing.assert_close(w, numbers(case["weights"][name]), rtol=2e-9, atol=1e-9)


def cagrad_objective(gram: Tensor, w: Tensor) -> Tensor:
    """The dual, ``(G u)·v + c‖Jᵀu‖‖Jᵀv‖`` of v on the simplex, that the weights ``u + …·v`` come from."""
    u = torch.full_like(w, 1 / len(w))
    v = (w - u) / (w - u).sum()
    return (gram @ u) @ v + 0.5 * (u @ gram @ u).sqrt() * (v @ gram @ v).sqrt()


@each_case
@all_ways
def test_golden_cagrad(case: dict) -> None:
    given, expected = matrix(case) / matrix(case).trace(), numbers(case["reference"]["cagrad_weights"])
    w = solve_cagrad(matrix(case), 0.5)
    if case["kind"] in ("stationary", "zero_row"):  # nothing helps all: torchjd has zeros there
        torch.testing.assert_close(w, torch.full_like(w, 1 / len(w)))
        return
    torch.testing.assert_close(w, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cagrad_objective(given, w), cagrad_objective(given, expected), rtol=0, atol=1e-8)


@each_case
@all_ways
def test_golden_eigenvalues(case: dict) -> None:
    if case["unstable"]:
        pytest.skip("the rank of the matrix is not decided in float64")
    w, given = case["weights"], matrix(case)
    torch.testing.assert_close(solve_imtlg(given), numbers(w["IMTLG"]), rtol=1e-9, atol=1e-9)
    for mode in ("min", "rmse"):
        found, expected = solve_alignedmtl(given, mode), numbers(w[f"AlignedMTL_{mode}"])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@each_case
@all_ways
def test_golden_nash(case: dict) -> None:
    expected = case["reference"]["nash_weights"]
    if expected is None:
        pytest.skip("no solution")
    w = solve_nash(matrix(case)) / matrix(case).diagonal().amax().sqrt()
    torch.testing.assert_close(w, numbers(expected), rtol=1e-8, atol=0)


# Theorems.


@each_size
@all_ways
def test_projections_meet_the_optimality_conditions(K: int) -> None:
    """``v ≥ l``, ``G v ≥ 0``, and one of both is met with equality; so is that of each row of UPGRAD."""
    for given in random_grams(K):
        _, unit = unit_lengths(given)
        lower = torch.cat((torch.eye(K, dtype=torch.float64), torch.full((1, K), 1 / K, dtype=torch.float64)))
        v = lower + gram.rise_above(unit.unsqueeze(0), lower)
        s = v @ unit
        assert (v >= lower).all()
        assert s.min() > -1e-12 * v.max()
        assert ((v - lower) * s).abs().max() < 1e-12 * v.max().square()
        for name in NO_CONFLICT:
            w = SOLVERS[name](given)
            assert (w >= 1 / K - 1e-12).all()
            lengths = given.diagonal().sqrt()
            assert (given @ w / lengths / (w @ lengths)).min() > -1e-8


@each_size
@all_ways
def test_without_a_conflict_projections_are_the_average(K: int) -> None:
    given = next(iter(random_grams(K))).abs() + 30 * torch.eye(K)
    for name in NO_CONFLICT:
        assert torch.equal(SOLVERS[name](given), torch.full((K,), 1 / K, dtype=torch.float64)), name


@each_size
@all_ways
@pytest.mark.parametrize("c", [0.0, 0.2, 0.5, 0.9])
def test_cagrad_is_optimal_and_as_far_from_the_mean_as_it_may(K: int, c: float) -> None:
    for given in random_grams(K):
        u = torch.full((K,), 1 / K, dtype=torch.float64)
        x = solve_cagrad(given, c) - u
        assert (x >= 0).all()
        if not x.any():
            assert c == 0 or min_norm_is_zero(given)
            continue
        far, allowed = (x @ given @ x).sqrt(), c * (u @ given @ u).sqrt()
        torch.testing.assert_close(far, allowed, rtol=1e-4, atol=0)
        gains = given @ (u + x)
        assert (gains - gains.min())[x > 1e-9 * x.max()].max() <= 1e-6 * gains.abs().max()


def min_norm_is_zero(given: Tensor) -> bool:
    w = min_norm.solve_min_norm(given)
    return bool((w @ given @ w) < 1e-6 * given.trace())


@each_size
@all_ways
def test_imtlg_reaches_equally_far_along_each(K: int) -> None:
    for given in list(random_grams(K))[:3]:
        w = solve_imtlg(given)
        projections = given @ w / given.diagonal().sqrt()
        assert w.sum().item() == pytest.approx(1)
        torch.testing.assert_close(projections, projections.mean().expand(K), rtol=1e-7, atol=0)


@each_size
@all_ways
def test_alignedmtl_makes_gradients_orthogonal_and_equally_long(K: int) -> None:
    """Linear in the weights that it starts from, so that K of them tell ``B``: ``B G B = λ_min·I``."""
    for given in list(random_grams(K))[:3]:
        values, vectors, inside = eigen(given)
        assert inside.sum() == K
        root = vectors @ torch.diag_embed((values.where(inside, torch.inf).amin() / values).sqrt().where(inside, 0.0))
        balance = root @ vectors.T
        torch.testing.assert_close(solve_alignedmtl(given, "min"), balance.mean(1))
        smallest = torch.linalg.eigvalsh(given)[0]
        torch.testing.assert_close(balance @ given @ balance, smallest * torch.eye(K).double(), rtol=1e-8, atol=1e-8)
    orthonormal = torch.eye(K, dtype=torch.float64)
    torch.testing.assert_close(solve_alignedmtl(orthonormal, "min"), torch.full((K,), 1 / K, dtype=torch.float64))


@each_size
@all_ways
def test_nash_bargains(K: int) -> None:
    for given in list(random_grams(K))[:2]:
        w = solve_nash(given) / given.diagonal().amax().sqrt()
        assert (w > 0).all()
        torch.testing.assert_close(w * (given @ w), torch.ones(K, dtype=torch.float64), rtol=1e-7, atol=0)
        assert (w @ given @ w).item() == pytest.approx(K)


@each_solver
@all_ways
@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_the_scale_of_the_gradients_does_not_matter(name: str, K: int) -> None:
    for given in list(random_grams(K))[:5]:
        w = SOLVERS[name](given)
        for scale in (1e-15, 1e-6, 1e15):
            torch.testing.assert_close(SOLVERS[name](scale**2 * given), w, rtol=1e-6, atol=1e-9)


@each_solver
@all_ways
@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_the_order_of_the_gradients_does_not_matter(name: str, K: int) -> None:
    order = torch.randperm(K, generator=torch.Generator().manual_seed(1))
    for given in list(random_grams(K))[:5]:
        permuted = SOLVERS[name](given[order][:, order])
        torch.testing.assert_close(permuted, SOLVERS[name](given)[order], rtol=1e-5, atol=1e-8)


@all_ways
@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_a_longer_gradient_scales_only_its_own_share_of_upgrad(K: int) -> None:
    given = next(iter(random_grams(K)))
    longer = torch.ones(K, dtype=torch.float64)
    longer[0] = 7
    scaled = given * longer * longer.unsqueeze(1)
    _, unit = unit_lengths(given)
    identity = torch.eye(K, dtype=torch.float64)
    shares = (identity + gram.rise_above(unit.unsqueeze(0), identity)) * given.diagonal().sqrt().unsqueeze(1)
    expected = (longer.unsqueeze(1) * shares).sum(0) / (longer * given.diagonal().sqrt()) / K
    torch.testing.assert_close(solve_upgrad(scaled), expected, rtol=1e-6, atol=1e-9)


@each_solver
@all_ways
def test_awkward_gradients_have_finite_weights_at_unit_scale(name: str) -> None:
    """Zero, equal, opposed ones, and those of the golden values that cancel out."""
    zero = torch.zeros(3, 3, dtype=torch.float64)
    one = torch.diag(numbers([1.0, 0.0, 0.0]))
    equal, opposed = torch.ones(3, 3, dtype=torch.float64), numbers([[1.0, -1.0], [-1.0, 1.0]])
    for given in (zero, one, equal, opposed, *(matrix(case) for case in CASES)):
        weights = SOLVERS[name](given)
        assert weights.isfinite().all()
        values, vectors = torch.linalg.eigh(given)
        gradients = vectors * values.clamp_min(0).sqrt()
        losses = torch.ones(len(given), 2, dtype=torch.float64)
        told = TeacherLosses(losses, torch.zeros(2, dtype=torch.long), "logit", lambda: losses, lambda: gradients)  # noqa: B023
        unit = weigh(ensemble_dict[name](), told, "unit")
        assert unit.sum().item() == pytest.approx(1)
        assert unit.abs().sum() <= 1.001 / NOTHING
        if given is zero or given is equal:
            torch.testing.assert_close(unit, torch.full_like(unit, 1 / len(unit)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("K", [2, 3, 8, 9, 16])
def test_jacobi_is_an_eigendecomposition(K: int) -> None:
    for given in random_grams(K):
        values, vectors = jacobi(given)
        size = given.trace()
        tolerance = 1e-11 if K <= 8 else 1e-9
        torch.testing.assert_close((vectors * values) @ vectors.mT / size, given / size, rtol=0, atol=tolerance)
        identity = torch.eye(K, dtype=torch.float64)
        torch.testing.assert_close(vectors @ vectors.mT, identity, rtol=0, atol=1e-13)
        expected = torch.linalg.eigvalsh(given).clamp_min(0)
        found = values.sort().values[-K:].clamp_min(0)
        torch.testing.assert_close(found / size, expected / size, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "K"), [*((name, 3) for name in SOLVERS), ("CAGRAD", 9)])
def test_nothing_waits_for_the_device(name: str, K: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced without values, it holds nothing that reads a value back or copies one from the host."""
    monkeypatch.setattr(min_norm, "on_host", lambda gram: False)
    graph = make_fx(SOLVERS[name], tracing_mode="fake")(torch.eye(K, dtype=torch.float64))
    names = {str(node.target) for node in graph.graph.nodes}
    assert not [each for each in names if any(word in each for word in ("local_scalar", "nonzero", "lift_fresh"))]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_solver
@pytest.mark.parametrize("K", [2, 3, 8, 9])
def test_gpu_equals_cpu_without_synchronising(name: str, K: int) -> None:
    for given in list(random_grams(K))[:3]:
        on_gpu = given.cuda()
        SOLVERS[name](on_gpu)  # captures
        try:
            torch.cuda.set_sync_debug_mode("error")
            weights = SOLVERS[name](on_gpu)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(weights.cpu(), SOLVERS[name](given), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("c", [-0.1, float("inf"), float("nan")])
def test_cagrad_refuses_what_is_no_length(c: float) -> None:
    with pytest.raises(UsageError, match=r"^--cagrad_c: "):
        ensemble_dict["CAGRAD"](cagrad_c=c).require_valid(3)


def test_diagnostics_tell_conflicts() -> None:
    losses = torch.ones(2, 4, dtype=torch.float64)
    for angle, conflict in ((0.1, 0.0), (-0.1, 1.0)):
        gradients = numbers([[1.0, angle], [0.0, 1.0]])
        told = TeacherLosses(losses, torch.zeros(4, dtype=torch.long), "logit", lambda: losses, lambda: gradients)  # noqa: B023
        for name in (*SOLVERS, "AEKD"):
            method = ensemble_dict[name]()
            report = method.diagnostics(told, method.weights(told))
            assert report["conflict"] == conflict
            assert report["gradient_cosine"].item() == pytest.approx(angle / (1 + angle**2) ** 0.5)
