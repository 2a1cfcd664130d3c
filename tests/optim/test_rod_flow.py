"""Rod flow: thresholds, orbits, slow twins, tracking, the optimizer, the shadow, sharpness; resume and refusals."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prism_plugin.edge_of_stability import TrackingSettings, make_problem, track
from prism_plugin.edge_of_stability.tracker import BETAS, SETTINGS, summarize
from prism_plugin.optim import Discrete, RodFlow, RodShadow, eos_threshold
from prism_plugin.optim.rod_flow.conventions import Moments, phase_map, read_moments, write_moments
from prism_plugin.optim.rod_flow.flows import Point, Rod, add_rounding, advance, open_rod
from prism_plugin.optim.rod_flow.phase_space import METHODS, PhaseMap
from prism_plugin.optim.rod_flow.sharpness import sharpness
from prism_plugin.optim.vectors import assign, flatten
from tests.reference import rod_flow_reference as slow

_file = Path(__file__).parents[2] / "benchmarks" / "rod_flow.py"
_specification = importlib.util.spec_from_file_location("rod_flow_benchmark", _file)
benchmark = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(benchmark)

METHOD = pytest.mark.parametrize("method", list(METHODS))
ETA, B1, B2, EPS = 0.07, 0.6, 0.95, 1e-3


def make_map(method: str, lr: float = ETA, b1: float = B1, b2: float = B2, eps: float = EPS) -> PhaseMap:
    return Discrete([nn.Parameter(torch.zeros(1))], method, lr, b1, b2, eps).map


def bumpy(x: Tensor) -> Tensor:
    """A loss whose Hessian varies, of 5 numbers."""
    scales = torch.tensor([1.0, 3.0, 6.0, 0.5, 2.0], dtype=x.dtype)
    return (0.5 * scales * x.square() + 0.3 * torch.cos(2 * x + x.roll(1))).sum()


def bumpy_gradient(x: np.ndarray) -> np.ndarray:
    point = torch.tensor(x, requires_grad=True)
    return torch.autograd.grad(bumpy(point), point)[0].numpy()


def gradient_of(loss):
    def gradient(w: Tensor) -> tuple[float, Tensor]:
        point = w.detach().requires_grad_()
        value = loss(point)
        return float(value.detach()), torch.autograd.grad(value, point)[0]

    return gradient


def closure_of(optimizer, loss):
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


START = torch.tensor([0.9, -0.7, 0.4, 1.3, -1.1], dtype=torch.float64)


@pytest.fixture
def in_double():
    """NAdam keeps the product of its momenta in torch's default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- maps and conventions -------------------------------------------------------------------------------------------


@METHOD
def test_every_optimizer_equals_its_slow_twin(method) -> None:
    x = nn.Parameter(START.clone())
    optimizer = Discrete([x], method, ETA, B1, B2, EPS)
    w, m, nu = START.numpy(), np.zeros(5), np.zeros(5)
    for t in range(40):
        optimizer.step(closure_of(optimizer, lambda: bumpy(x)))
        w, m, nu = slow.discrete(method, w, m, nu, t, bumpy_gradient, ETA, B1, B2, EPS)
        q = w - ETA * B1 * m if method == "nesterov" else w  # our point is the one where the gradient is taken
        np.testing.assert_allclose(x.detach().numpy(), q, rtol=0, atol=1e-13)


TORCH = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.7),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.7, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-4),
    "adam": lambda p: torch.optim.Adam(p, lr=0.03, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.03, betas=(0.8, 0.95), weight_decay=0.2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.03, betas=(0.8, 0.95), momentum_decay=0.05),
    "nadam, decoupled": lambda p: torch.optim.NAdam(p, lr=0.03, weight_decay=0.2, decoupled_weight_decay=True),
}
LIKE_TORCH = pytest.mark.parametrize("make", list(TORCH.values()), ids=list(TORCH))


@LIKE_TORCH
def test_the_map_read_off_a_torch_optimizer_makes_its_steps(make, in_double) -> None:
    x = nn.Parameter(START.clone())
    optimizer = make([x])
    phase, w = phase_map(optimizer), START.clone()
    m, nu = phase.start(w)
    for t in range(30):
        optimizer.step(closure_of(optimizer, lambda: bumpy(x)))
        w, m, nu = phase.step(w, m, nu, gradient_of(bumpy)(w)[1], t)
        torch.testing.assert_close(x.detach(), w, rtol=0, atol=1e-12)
    moments = read_moments(optimizer)
    for kept, mine in ((moments.m, m), (moments.nu, nu)):
        assert (kept is None) == (mine is None)
        if kept is not None:
            torch.testing.assert_close(kept, mine, rtol=0, atol=1e-13)


@pytest.mark.parametrize("make", [*TORCH.values(), lambda p: Discrete(p, "nadam", 0.02)], ids=[*TORCH, "discrete"])
def test_moments_go_from_one_optimizer_to_another(make, in_double) -> None:
    parameters = [nn.Parameter(START[:2].clone()), nn.Parameter(START[2:].clone().view(1, 3))]
    twins = copy.deepcopy(parameters)
    first, second = make(parameters), make(twins)

    def loss(of):
        return bumpy(torch.cat([p.reshape(-1) for p in of]))

    for _ in range(7):
        first.step(closure_of(first, lambda: loss(parameters)))
    write_moments(second, read_moments(first))
    assign(twins, flatten(parameters))
    for _ in range(7):
        first.step(closure_of(first, lambda: loss(parameters)))
        second.step(closure_of(second, lambda: loss(twins)))
    torch.testing.assert_close(flatten(twins), flatten(parameters), rtol=0, atol=1e-13)


def test_what_no_map_describes_is_refused() -> None:
    x = [nn.Parameter(torch.zeros(2))]
    for optimizer, message in (
        (torch.optim.Adam(x, amsgrad=True), "amsgrad=True is not described"),
        (torch.optim.RMSprop(x, centered=True), "centered=True is not described"),
        (torch.optim.RMSprop(x, momentum=0.9), "RMSprop with momentum averages scaled gradients"),
        (torch.optim.SGD(x, maximize=True), "maximize=True is not described"),
        (torch.optim.LBFGS(x), "map of phase space of LBFGS is not known"),
        (torch.optim.Adagrad(x), "map of phase space of Adagrad is not known; there are those of SGD, RMSprop, Adam"),
        (
            torch.optim.SGD([{"params": x}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 1.0}], lr=0.1),
            "differ in lr",
        ),
    ):
        for use in (eos_threshold, lambda o: RodFlow(x, o), lambda o: RodShadow(o, lambda: x[0].sum())):
            with pytest.raises(ValueError, match=message):
                use(optimizer)
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        eos_threshold(torch.optim.SGD(x, lr=0.1), step=-1)
    for kind in (torch.bfloat16, torch.float16):
        half = [nn.Parameter(torch.zeros(2, dtype=kind))]
        with pytest.raises(ValueError, match="use float32 or float64"):
            RodFlow(half, torch.optim.SGD(half, lr=0.1))
    with pytest.raises(ValueError, match="unknown method 'adams'; choose one of: gd, heavy-ball"):
        Discrete(x, "adams", 0.1)
    for name, value in (("beta1", 1.0), ("beta2", -0.1), ("eps", -1.0), ("lr", 0.0)):
        with pytest.raises(ValueError, match=f"{name} must be a number"):
            Discrete(x, "adam", **{"lr": 0.1, name: value})


# --- thresholds -----------------------------------------------------------------------------------------------------


def crossing(grows, high: float) -> float:
    """Where something starts to grow, by bisection."""
    low = 0.0
    assert grows(high)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if grows(middle) else (middle, high)
    return high


def map_matrix(name: str, sharp: float, t: float, b1: float, eta: float) -> np.ndarray:
    """The plain optimizer on sharp/2 w^2 with P = 1, in the papers' convention."""
    columns = []
    for w, m in ((1.0, 0.0), (0.0, 1.0)):
        w, m = np.array([w]), np.array([m])
        g = sharp * (w - eta * b1 * m if name == "nesterov" else w)
        columns.append([*(w - eta * slow.direction(name, m, g, t, b1)), *(b1 * m + (1 - b1) * g)])
    return np.array(columns).T


def rod_matrix(name: str, sharp: float, t: float, b1: float, eta: float, h: float | None) -> np.ndarray:
    """The rod on it: do/dt = -2 o - (map - 1) o, and its Euler step of length h."""
    rate = -2 * np.eye(2) - (map_matrix(name, sharp, t, b1, eta) - np.eye(2))
    return rate if h is None else np.eye(2) + h * rate


@pytest.mark.parametrize("b1", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("t", [0, 3, 10**6])
@METHOD
def test_thresholds_by_bisection_of_map_and_rod(method, b1, t) -> None:
    eta = 0.3
    threshold = make_map(method, eta, b1).threshold(t)
    found = crossing(lambda s: np.abs(np.linalg.eigvals(map_matrix(method, s, t, b1, eta))).max() > 1, 3 * threshold)
    assert threshold == pytest.approx(found, rel=1e-12)
    grows = crossing(lambda s: np.linalg.eigvals(rod_matrix(method, s, t, b1, eta, None)).real.max() > 0, 3 * threshold)
    assert threshold == pytest.approx(grows, rel=1e-12)
    euler = crossing(
        lambda s: np.abs(np.linalg.eigvals(rod_matrix(method, s, t, b1, eta, 0.5))).max() > 1, 2 * threshold
    )
    assert threshold == pytest.approx(euler, rel=1e-12)


TINY = 1e-10  # so small that its square does not move a second moment of 1


def torch_matrix(make, sharp: float, steps: int) -> np.ndarray:
    """One late step of a torch optimizer on sharp/2 w^2 with P = 1, from (w, momentum) to (w, momentum)."""
    columns = []
    for w, m in ((TINY, 0.0), (0.0, TINY)):
        x = nn.Parameter(torch.tensor([w], dtype=torch.float64))
        optimizer = make([x])
        phase = phase_map(optimizer)
        nu = None if phase.scaling == "none" else torch.ones(1, dtype=torch.float64)
        write_moments(optimizer, Moments(torch.tensor([m], dtype=torch.float64), nu, steps))
        x.grad = sharp * x.detach()
        optimizer.step()
        new = read_moments(optimizer).m
        columns.append([float(x.detach()), 0.0 if new is None else float(new)])
    return np.array(columns).T / TINY


@pytest.mark.parametrize(
    ("make", "steps", "expected"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 0, 20.0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 0, 2 * 1.9 / 0.1),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), 0, 2 * 1.9 / 0.05),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 0, 2 * 1.9 / (2.8 * 0.1)),
        (lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3), 10**6, (20 - 0.3) * 19),
        (lambda p: torch.optim.Adam(p, lr=0.1), 5, 380 * (1 - 0.9**6)),
        (lambda p: torch.optim.RMSprop(p, lr=0.1), 0, 20.0),
        (lambda p: torch.optim.NAdam(p, lr=0.1), 3, None),
        (lambda p: torch.optim.NAdam(p, lr=0.1), 1000, None),
        (lambda p: torch.optim.NAdam(p, lr=0.1), 30_000, None),
    ],
)
def test_thresholds_of_torch_by_bisection_of_its_own_steps(make, steps, expected, in_double) -> None:
    optimizer = make([nn.Parameter(torch.zeros(1))])
    threshold, phase = eos_threshold(optimizer, steps), phase_map(optimizer)
    if expected is not None:
        assert threshold == pytest.approx(expected, rel=1e-14)
    p = 1.0 if phase.scaling == "none" else float(phase.denominator(torch.tensor([phase.beta2]), steps))
    found = crossing(lambda s: np.abs(np.linalg.eigvals(torch_matrix(make, s, steps))).max() > 1, 3 * threshold * p)
    assert threshold * p == pytest.approx(found, rel=1e-12)


def test_thresholds_of_the_table() -> None:
    x = [nn.Parameter(torch.zeros(1))]
    assert eos_threshold(torch.optim.Adam(x, lr=1.0)) == pytest.approx(38)
    assert eos_threshold(torch.optim.Adam(x, lr=1.0), step=0) == pytest.approx(3.8)
    assert eos_threshold(torch.optim.AdamW(x, lr=0.1, weight_decay=0.5)) == pytest.approx((20 - 0.5) * 19)
    assert eos_threshold(torch.optim.RMSprop(x, lr=0.01)) == pytest.approx(200)
    assert eos_threshold(Discrete(x, "nadam", 1.0)) == pytest.approx(13.571428571428571)
    mu = 0.9 * (1 - 0.5 * 0.96 ** (0.004 * 3001))
    late = 2 / (0.1 * (mu * 0.1 / 1.9 + 1 - mu))
    assert eos_threshold(torch.optim.NAdam(x, lr=0.1), step=3000) == pytest.approx(late, rel=1e-4)
    assert eos_threshold(torch.optim.NAdam(x, lr=1.0)) == pytest.approx(13.571428571428571)


# --- orbits ---------------------------------------------------------------------------------------------------------


def settle(phase: PhaseMap, loss, w: float, steps: int) -> tuple[float, float]:
    """|w| of the plain run and |o| of the rod when both have settled into their orbits."""
    gradient = gradient_of(loss)
    start = torch.tensor([w], dtype=torch.float64)
    m, nu = phase.start(start)
    if m is not None:  # on the orbit momentum changes its sign in every step: -m = b m + (1 - b) g
        m = -(1 - phase.beta1) / (1 + phase.beta1) * gradient(start)[1]
    point, rod = Point(start, m, nu), Rod(Point(0 * start, None if m is None else 0 * m, nu), start, m, 0.0)
    for t in range(steps):
        point = Point(*phase.step(point.w, point.m, point.nu, gradient(point.w)[1], t))
    for _ in range(2 * steps):
        rod, _ends = advance(phase, rod, 0.5, gradient)
    return abs(float(point.w)), abs(float(rod.w))


@pytest.mark.parametrize(
    ("method", "b1", "expected"),
    [
        ("gd", 0.0, 1.41421356),
        ("heavy-ball", 0.4, 2.16024690),
        ("heavy-ball", 0.9, 6.16441400),
        ("nesterov", 0.4, 1.61015297),
    ],
)
def test_orbits_of_period_two_on_the_quartic(method, b1, expected) -> None:
    phase = make_map(method, 0.1, b1)
    edge = phase.threshold()
    formula = math.sqrt(0.1 * edge)  # q_o^2 = (S - S*) / Q, S = 1.1 S*, Q = 1
    run, rod = settle(phase, lambda w: (1.1 * edge / 2 * w**2 - w**4 / 4).sum(), 0.9 * expected, 4000)
    assert formula == pytest.approx(expected, abs=5e-9)
    assert run == pytest.approx(expected, abs=5e-9)
    assert rod == pytest.approx(expected, abs=5e-9)


@pytest.mark.parametrize(("method", "b1"), [("rmsprop", 0.0), ("nadam", 0.4), ("nadam", 0.9)])
def test_orbits_of_adaptive_methods_on_a_quadratic(method, b1) -> None:
    phase = make_map(method, 0.1, b1, 0.5, 0.0)
    run, rod = settle(phase, lambda w: (3.0 * w**2).sum(), 1.2 / phase.threshold(), 3000)
    assert run == pytest.approx(1 / phase.threshold(), rel=1e-8)
    assert rod == pytest.approx(1 / phase.threshold(), rel=1e-8)


# --- the flow against its slow twin -----------------------------------------------------------------------------------


def three_points(method: str) -> tuple[list[Point], list[tuple[np.ndarray, ...]], int]:
    """z_{K-1}, z_K, z_{K+1} of a run, ours and in the papers' convention, and K."""
    phase = make_map(method)
    mine, theirs = Point(START, *phase.start(START)), (START.numpy(), np.zeros(5), np.zeros(5))
    ours, papers = [mine], [theirs]
    for t in range(8):
        mine = Point(*phase.step(mine.w, mine.m, mine.nu, gradient_of(bumpy)(mine.w)[1], t))
        theirs = slow.discrete(method, *theirs, t, bumpy_gradient, ETA, B1, B2, EPS)
        ours, papers = [*ours, mine], [*papers, theirs]
    return ours[-3:], papers[-3:], 7


@METHOD
def test_the_signed_form_equals_its_slow_twin(method) -> None:
    ours, papers, k = three_points(method)
    rod = open_rod(ours, k)
    (w, m, nu), (ow, om) = slow.rod_start(*papers)
    longer = 1 / float(rod.w.norm())  # long enough to matter
    rod = Rod(rod.center, longer * rod.w, None if rod.m is None else longer * rod.m, rod.time)
    ow, om = longer * ow, longer * om
    moved = 0.0
    for number in range(120):
        h = (0.5, 0.25)[number // 60]
        w, m, nu, ow, om = slow.rod_euler(method, w, m, nu, ow, om, rod.time, h, bumpy_gradient, ETA, B1, B2, EPS)
        rod, _ = advance(make_map(method), rod, h, gradient_of(bumpy))
        shift, oshift = (ETA * B1 * m, ETA * B1 * om) if method == "nesterov" else (0.0, 0.0)
        np.testing.assert_allclose(rod.center.w.numpy(), w - shift, rtol=0, atol=1e-12)
        np.testing.assert_allclose(rod.w.numpy(), ow - oshift, rtol=0, atol=1e-12)
        moved = max(moved, np.abs(ow).max())
    assert moved > 1e-2


@METHOD
def test_stable_flow_equals_a_rod_of_zeros(method) -> None:
    ours, papers, k = three_points(method)
    (w, m, nu), _ = slow.rod_start(*papers)
    center = open_rod(ours, k).center
    rod = Rod(center, None, None, float(k))
    for _ in range(60):
        w, m, nu, *_ = slow.rod_euler(method, w, m, nu, 0 * w, 0 * m, rod.time, 0.5, bumpy_gradient, ETA, B1, B2, EPS)
        rod, ends = advance(make_map(method), rod, 0.5, gradient_of(bumpy))
        shift = ETA * B1 * m if method == "nesterov" else 0.0
        np.testing.assert_allclose(rod.center.w.numpy(), w - shift, rtol=0, atol=1e-12)
    assert math.isnan(ends.sharpness)
    assert not ends.open


@pytest.mark.parametrize("h", [0.5, 0.25])
@pytest.mark.parametrize("method", ["gd", "rmsprop"])
def test_the_outer_form_is_the_best_approximation_of_rank_one(method, h) -> None:
    ours, _, k = three_points(method)
    rod = open_rod(ours, k, "outer")
    assert rod.time == k + 0.5
    rod = Rod(rod.center, 30 * rod.w, rod.m, rod.time)
    w, delta = rod.center.w.numpy(), rod.w.numpy()
    nu = np.zeros(5) if rod.center.nu is None else rod.center.nu.numpy()
    for _ in range(40):
        index = rod.time - 0.5 + h / 2
        w, nu, delta = slow.outer_euler(w, nu, delta, index, h, bumpy_gradient, ETA, B2, EPS, method)
        rod, _ = advance(make_map(method), rod, h, gradient_of(bumpy), "outer")
        np.testing.assert_allclose(rod.center.w.numpy(), w, rtol=0, atol=1e-9)
        np.testing.assert_allclose(rod.w.numpy(), delta, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["heavy-ball", "nesterov", "adam"])
def test_the_outer_form_with_momentum_is_the_best_approximation_of_rank_one(method) -> None:
    ours, _, k = three_points(method)
    rod, phase, gradient = open_rod(ours, k, "outer"), make_map(method), gradient_of(bumpy)
    rod = Rod(rod.center, 30 * rod.w, 30 * rod.m, rod.time)
    for _ in range(20):
        h, index, delta = 0.4, rod.time - 0.5 + 0.2, torch.cat([rod.w, rod.m])
        rates = []
        gradients = [gradient(rod.center.w + sign * rod.w)[1] for sign in (1, -1)]
        p = None
        if rod.center.nu is not None:
            mean = (gradients[0] ** 2 + gradients[1] ** 2) / 2
            p = phase.denominator(rod.center.nu + 0.7 * (1 - B2) * (mean - rod.center.nu), index)
        for sign, g in zip((1, -1), gradients, strict=True):
            end = rod.center.w + sign * rod.w, rod.center.m + sign * rod.m
            rates.append(torch.cat(phase.change(*end, g, p, index)))
        sigma = (1 - 2 * h) * torch.outer(delta, delta) + h / 4 * sum(torch.outer(rate, rate) for rate in rates)
        values, vectors = torch.linalg.eigh(sigma)
        expected = values[-1].sqrt() * vectors[:, -1]
        rod, _ = advance(phase, rod, h, gradient, "outer")
        expected = expected if expected @ delta > 0 else -expected
        torch.testing.assert_close(torch.cat([rod.w, rod.m]), expected, rtol=0, atol=1e-10)


def test_the_floor_is_as_large_as_rounding() -> None:
    w = torch.linspace(-3, 3, 20_000, dtype=torch.float64)
    rod = Rod(Point(w, None, None), torch.zeros_like(w), None, 5.0)
    noise = add_rounding(rod, seed=1).w
    assert float((noise / w).std()) == pytest.approx(2**-53, rel=0.03)
    assert abs(float((noise / w).mean())) < 0.03 * 2**-53
    later = add_rounding(dataclasses.replace(rod, time=6.0), seed=1).w
    assert abs(float(torch.corrcoef(torch.stack([noise / w, later / w]))[0, 1])) < 0.05
    assert torch.equal(add_rounding(rod, seed=1).w, noise)
    half = dataclasses.replace(rod, center=Point(w.float(), None, None), w=torch.zeros(20_000))
    assert float((add_rounding(half, seed=1).w / w.float()).std()) == pytest.approx(2**-24, rel=0.03)


@METHOD
def test_euler_steps_of_one_are_two_runs(method) -> None:
    phase = make_map(method)
    generator = torch.Generator().manual_seed(1)
    w, m, ow, om = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    nu = {"none": None, "scalar": torch.tensor(0.3, dtype=torch.float64)}.get(phase.scaling, m.square())
    m, om = (m, 0.1 * om) if phase.has_momentum else (None, None)
    rod = Rod(Point(w, m, nu), 0.1 * ow, om, 4.0)
    gradient = gradient_of(bumpy)
    ends = [(w + s * rod.w, None if m is None else m + s * om) for s in (1, -1)]
    for t in range(4, 34):
        gradients = [gradient(w)[1] for w, _ in ends]
        if nu is not None:  # the one that both share: the mean of theirs
            nu = torch.lerp(nu, phase.squares(*gradients) / 2, 1 - phase.beta2)
        p = None if nu is None else phase.denominator(nu, t)
        changes = [phase.change(w, m, g, p, t) for (w, m), g in zip(ends, gradients, strict=True)]
        ends = [(w + dw, None if m is None else m + dm) for (w, m), (dw, dm) in zip(ends, changes, strict=True)]
        rod, _ = advance(phase, rod, 1.0, gradient)
        sign = (-1) ** (t + 1)  # the plus end is where the first run is at even times
        torch.testing.assert_close(rod.center.w + sign * rod.w, ends[0][0], rtol=0, atol=1e-13)
        torch.testing.assert_close(rod.center.w - sign * rod.w, ends[1][0], rtol=0, atol=1e-13)


def test_the_loss_at_the_center_is_exact_for_a_cubic() -> None:
    phase = make_map("gd")
    rod = Rod(Point(START, None, None), 0.3 * START.flip(0), None, 1.0)
    _, ends = advance(phase, rod, 0.5, gradient_of(lambda x: (x**3 - 2 * x**2).sum()))
    assert ends.center == pytest.approx(float((START**3 - 2 * START**2).sum()), rel=1e-13)
    decayed = PhaseMap(lr=0.1, penalty=0.7)
    _, with_penalty = advance(decayed, rod, 0.5, gradient_of(lambda x: (x**3 - 2 * x**2).sum()))
    assert with_penalty.center == pytest.approx(ends.center, rel=1e-13)
    assert with_penalty.sharpness == pytest.approx(ends.sharpness + 0.7)


# --- tracking ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@METHOD
def test_the_rod_tracks_the_241_parameters_of_the_specification(method) -> None:
    tables = [benchmark.toy(method, seed) for seed in range(3)]
    advantages = [summarize(table)["advantage"] for table in tables]
    assert min(advantages) > 1
    assert np.exp(np.mean(np.log(advantages))) > 3
    if method in ("gd", "heavy-ball", "nesterov", "rmsprop", "nadam"):
        together = {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
        assert summarize(together)["edge_ratio"] == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_a_rod_entered_from_below_opens_by_the_rounding_floor_only() -> None:
    tables = [benchmark.from_below(seed) for seed in range(3)]
    assert all(table["rod_length"].min() < 1e-12 for table in tables)
    advantages = [summarize(table)["advantage"] for table in tables]
    assert min(advantages) > 2  # when it opens is a matter of rounding
    assert np.exp(np.mean(np.log(advantages))) > 3
    assert summarize(benchmark.from_below(0, floor=False))["advantage"] == pytest.approx(1, abs=0.05)
    outer = benchmark.from_below(
        0, form="outer"
    )  # the defect of rank one: it lies along the drift, where nothing oscillates
    assert summarize(outer)["advantage"] < 2
    assert outer["open"][-1]
    assert outer["ratio"][-1] < 0.1


def test_the_shadow_leaves_the_run_alone() -> None:
    problem, twin = make_problem("toy"), make_problem("toy")
    shadowed, alone = (torch.optim.Adam(p.model.parameters(), lr=0.01, betas=(0.5, 0.99)) for p in (problem, twin))
    shadow = RodShadow(shadowed, problem.loss, sharpness_every=5)
    for _ in range(30):
        row = shadow.step()
        alone.step(closure_of(alone, twin.loss))
    torch.testing.assert_close(flatten(problem.model.parameters()), flatten(twin.model.parameters()), rtol=0, atol=0)
    assert row["loss_plus"] != row["loss_minus"]


def test_sharpness_beside_a_run_is_that_of_the_penalized_loss_with_the_scaling_of_the_step() -> None:
    problem = make_problem("toy")
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.01, betas=(0.5, 0.9), weight_decay=0.3)
    shadow = RodShadow(optimizer, problem.loss, sharpness_every=1)
    for _ in range(14):
        row = shadow.step()
    phase, moments = phase_map(optimizer), read_moments(optimizer)
    p = (moments.nu / (1 - 0.9**14)).sqrt() + 1e-8
    parameters = list(problem.model.parameters())

    def penalized() -> Tensor:
        return problem.loss() + 0.15 * sum(parameter.square().sum() for parameter in parameters)

    assert row["sharpness"] == pytest.approx(sharpness(penalized, parameters, p)[0], rel=1e-3)
    assert row["threshold"] == pytest.approx(phase.threshold(13))
    places = ("rod", shadow.rod), ("stable", shadow.stable)
    for name, rod in places:
        assign(parameters, rod.center.w)
        p = phase.denominator(rod.center.nu, 13)
        assert row[f"sharpness_{name}"] == pytest.approx(sharpness(penalized, parameters, p)[0], rel=1e-3)
        assert rod.time == 14


def test_distances_are_those_of_the_middles() -> None:
    for form in ("signed", "outer"):
        problem, twin = make_problem("toy"), make_problem("toy")
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.3)
        shadow = RodShadow(optimizer, problem.loss, form=form, floor=False, warmup=4)
        plain = torch.optim.SGD(twin.model.parameters(), lr=0.3)
        points = [flatten(twin.model.parameters())]
        for step in range(8):
            rod = shadow.rod
            row = shadow.step()
            plain.step(closure_of(plain, twin.loss))
            points.append(flatten(twin.model.parameters()))
            if step > 4:
                middle = (points[-2] + points[-1]) / 2
                center = rod.center.w if form == "outer" else (rod.center.w + shadow.rod.center.w) / 2
                assert row["distance_rod"] == pytest.approx(float((center - middle).norm()), rel=1e-9)
                assert row["way"] == pytest.approx(float((points[-1] - points[-3]).norm()) / 2, rel=1e-9)


def test_the_summary_by_hand() -> None:
    table = {
        "distance_rod": np.array([np.nan, 1.0, 2.0, 2.0]),
        "distance_stable": np.array([np.nan, 4.0, 10.0, 6.0]),
        "way": np.array([np.nan, 3.0, 1.0, 1.0]),
        "open": np.array([np.nan, 1.0, 1.0, 0.0]),
        "rod_length": np.array([np.nan, 1.0, 1.05, 2.0]),
        "ratio": np.array([np.nan, 0.9, 7.0, 8.0]),
        "nu_variation": np.array([np.nan, 0.1, 0.3, 0.9]),
        "nu_variation_rod": np.array([np.nan, 0.05, 0.02, 0.9]),
    }
    found = summarize(table)
    assert found["steps"] == 3
    assert found["open_share"] == pytest.approx(2 / 3)
    assert found["mean_distance_rod"] == pytest.approx(5 / 3)
    assert found["final_distance_stable"] == 6
    assert found["relative_rmse_rod"] == pytest.approx(3**0.5 / 5)
    assert found["advantage"] == pytest.approx(4)
    assert found["edge_ratio"] == pytest.approx(0.9)
    assert found["nu_variation"] == pytest.approx(0.3)
    assert found["nu_variation_rod"] == pytest.approx(0.05)


def test_how_much_the_second_moment_moves() -> None:
    problem = make_problem("toy")
    optimizer = torch.optim.RMSprop(problem.model.parameters(), lr=0.005, alpha=0.9)
    shadow = RodShadow(optimizer, problem.loss)
    for _ in range(13):
        before, rod = read_moments(optimizer).nu.clone(), shadow.rod
        row = shadow.step()
    nu = read_moments(optimizer).nu
    change, weight = (nu / before - 1).abs(), rod.w**2 * (nu.sqrt() + 1e-8)
    assert row["nu_variation"] == pytest.approx(float(change.max()), rel=1e-12)
    assert row["nu_variation_rod"] == pytest.approx(float((weight * change).sum() / weight.sum()), rel=1e-9)


def test_a_loss_that_is_not_the_same_twice_and_frozen_parameters_are_refused() -> None:
    x = nn.Parameter(torch.ones(3))
    draws = iter(range(100))
    with pytest.raises(ValueError, match=r"the loss was .* and then .* at the same weights"):
        RodShadow(torch.optim.SGD([x], lr=0.1), lambda: next(draws) * x.sum())
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    with pytest.raises(ValueError, match="a parameter of the optimizer is frozen"):
        RodShadow(torch.optim.SGD([x, frozen], lr=0.1), lambda: x.sum())
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1)).double()
    data = torch.randn(8, 4, dtype=torch.float64)
    shadow = RodShadow(torch.optim.SGD(net.parameters(), lr=0.05), lambda: net(data).square().mean(), warmup=2)
    rows = [shadow.step() for _ in range(6)]
    assert rows[-1]["loss_plus"] == pytest.approx(rows[-1]["loss_minus"], rel=0.2)  # the same mask at both ends


@pytest.mark.parametrize("form", ["signed", "outer"])
def test_a_flow_that_diverges_is_nan_and_the_run_goes_on(form) -> None:
    x = nn.Parameter(torch.tensor([0.1], dtype=torch.float64))
    shadow = RodShadow(torch.optim.SGD([x], lr=0.1), lambda: (x**4).sum(), form=form, sharpness_every=1, warmup=2)
    for _ in range(4):
        shadow.step()
    center = dataclasses.replace(shadow.rod.center, w=torch.full((1,), math.nan, dtype=torch.float64))
    shadow.rod, shadow.stable = (dataclasses.replace(flow, center=center) for flow in (shadow.rod, shadow.stable))
    row = shadow.step()
    assert all(math.isnan(row[key]) for key in ("distance_rod", "distance_stable", "sharpness_rod", "sharpness_stable"))
    assert row["sharpness"] == pytest.approx(12 * float(x.detach()) ** 2)


def test_refusals_of_the_shadow() -> None:
    problem = make_problem("toy")
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    for name, value, low in (("warmup", 0, 1), ("substeps", 1, 2), ("sharpness_every", -1, 0), ("seed", 1.5, 0)):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least {low}, got {value}"):
            RodShadow(optimizer, problem.loss, **{name: value})
    with pytest.raises(ValueError, match="unknown form 'inner'; choose one of: signed, outer"):
        RodShadow(optimizer, problem.loss, form="inner")
    x = nn.Parameter(torch.full((2,), 1e3))
    for wrong, message in (
        (3.0, "loss must be a function that computes the loss, got float"),
        (lambda: 3.0, r"loss\(\) must give one number as a tensor with a gradient, without backward; got 3.0"),
        (lambda: x**2, r"got a tensor of shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            RodShadow(torch.optim.SGD([x], lr=0.1), wrong)
    sgd = torch.optim.SGD([x], lr=1e-3)
    shadow = RodShadow(sgd, lambda: (x**2).sum())
    shadow.step()
    sgd.step(closure_of(sgd, lambda: (x**2).sum()))
    with pytest.raises(ValueError, match="something else has moved the parameters since the last step"):
        shadow.step()
    shadow = RodShadow(torch.optim.SGD([x], lr=2.0), lambda: (x**2).sum())
    message = r"step \d+: the run has diverged, its loss is .*; lower the learning rate \(now 2\)"
    with pytest.raises(ValueError, match=message):
        [shadow.step() for _ in range(20)]
    x = nn.Parameter(torch.full((2,), 1e3))
    shadow = RodShadow(torch.optim.SGD([x], lr=1000), lambda: (x**4).sum())
    shadow.step()
    with pytest.raises(ValueError, match=r"step 1: the loss is inf or .*; lower the learning rate \(now 1000\)"):
        shadow.step()


# --- sharpness --------------------------------------------------------------------------------------------------------


def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian() -> None:
    problem = make_problem("toy")
    parameters = list(problem.model.parameters())
    generator = torch.Generator().manual_seed(0)
    p = 0.5 + torch.rand(241, dtype=torch.float64, generator=generator)
    functional = torch.func.functional_call
    shapes = {name: value.shape for name, value in problem.model.named_parameters()}
    x = 0.5 * torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = 0.7 * ((2 * x[:, 0]).sin() * x[:, 1].cos())[:, None]

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return 0.5 * (functional(problem.model, weights, (x,)) - y).square().mean()

    dense = torch.func.hessian(loss)(flatten(parameters))
    assert float(loss(flatten(parameters)).detach()) == pytest.approx(float(problem.loss().detach()), rel=1e-14)
    for denominator in (None, p, torch.tensor(0.3, dtype=torch.float64)):
        root = torch.ones(241, dtype=torch.float64) if denominator is None else denominator.expand(241).sqrt()
        expected = torch.linalg.eigvalsh(dense / root[:, None] / root)[-1]
        value, vector = sharpness(problem.loss, parameters, denominator, tolerance=1e-10)
        assert value == pytest.approx(float(expected), rel=1e-9)
        again, _ = sharpness(problem.loss, parameters, denominator, start=vector, tolerance=1e-10)
        assert again == pytest.approx(value, rel=1e-9)
    assert all(parameter.grad is None for parameter in parameters)


def test_refusals_of_sharpness() -> None:
    half = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"second derivatives are noise in torch\.bfloat16"):
        sharpness(lambda: half.square().sum(), [half])
    x = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="the loss is linear"):
        sharpness(lambda: x.sum(), [x])
    assert sharpness(lambda: 4 * x[:1].square().sum(), [x])[0] == pytest.approx(8)
    one = nn.Parameter(torch.ones(1))
    assert sharpness(lambda: 4 * one.square().sum(), [one])[0] == pytest.approx(8)


# --- the optimizer ----------------------------------------------------------------------------------------------------


def toy_flow(make=lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.5, 0.99)), **settings):
    problem = make_problem("toy", dtype=settings.pop("dtype", torch.float64))
    optimizer = RodFlow(problem.model.parameters(), make(problem.model.parameters()), **settings)
    return problem, optimizer, closure_of(optimizer, problem.loss)


@pytest.mark.parametrize("form", ["signed", "outer"])
@METHOD
def test_the_optimizer_is_the_rod_of_the_shadow(method, form) -> None:
    make = lambda p: Discrete(p, method, SETTINGS[method]["toy"] / 2, *BETAS[method])  # noqa: E731
    _, optimizer, closure = toy_flow(make, form=form)
    twin, previous = make_problem("toy"), {}
    shadow = RodShadow(make(twin.model.parameters()), twin.loss, form=form)
    for number in range(40):
        loss = optimizer.step(closure)
        row = shadow.step()
        if number < 10:
            assert float(loss) == pytest.approx(row["loss"], rel=1e-13)
            assert not optimizer.stats["open"]
        if number > 10:  # the step in which the rod was made is the shadow's first of the flow
            assert optimizer.stats["rod_length"] == pytest.approx(previous["rod_length"], rel=1e-9)
            assert optimizer.stats["rod_sharpness"] == pytest.approx(previous["rod_sharpness"], rel=1e-6)
            assert float(loss) == pytest.approx(previous["loss_center"], rel=1e-12)
        previous = row
    assert optimizer.stats.keys() == {
        "loss_center", "loss_plus", "loss_minus", "rod_length", "rod_sharpness", "threshold", "ratio", "open"
    }  # fmt: skip


@LIKE_TORCH
def test_discretize_gives_the_plain_run_back(make, in_double) -> None:
    x, y = nn.Parameter(START.clone()), nn.Parameter(START.clone())
    plain, flow = make([x]), RodFlow([y], make([y]), warmup=7)
    for _ in range(7):
        plain.step(closure_of(plain, lambda: bumpy(x)))
    for _ in range(8):  # the eighth makes the rod, whose center is at the seventh
        flow.step(closure_of(flow, lambda: bumpy(y)))
    back = flow.discretize()
    assert type(back) is type(plain)
    torch.testing.assert_close(y.detach(), x.detach(), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="handed over to the plain optimizer"):
        flow.step(lambda: None)
    nu = read_moments(plain).nu
    if nu is None:  # the flow's second moment is smoothed over three steps
        for _ in range(9):
            plain.step(closure_of(plain, lambda: bumpy(x)))
            back.step(closure_of(back, lambda: bumpy(y)))
        torch.testing.assert_close(y.detach(), x.detach(), rtol=0, atol=1e-13)
    else:
        torch.testing.assert_close(read_moments(back).nu, nu, rtol=0.2, atol=1e-3)
    assert read_moments(back).steps == read_moments(plain).steps


@pytest.mark.parametrize(("form", "steps"), [("signed", 60), ("signed", 61), ("outer", 60), ("outer", 61)])
def test_discretize_gives_the_end_where_the_run_is(form, steps) -> None:
    def loss(x: Tensor) -> Tensor:  # an orbit of |x_0| = sqrt(2), and a drift in x_1
        return 11 * x[0] ** 2 - x[0] ** 4 / 4 + 0.05 * x[1] ** 2

    start = torch.tensor([1.3, 1.0], dtype=torch.float64)
    x, y = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    flow, plain = RodFlow([x], torch.optim.SGD([x], lr=0.1), form=form), torch.optim.SGD([y], lr=0.1)
    for _ in range(steps):
        flow.step(closure_of(flow, lambda: loss(x)))
    center = x.detach().clone()
    with flow.at("plus"):
        plus = x.detach().clone()
    with flow.at("minus"):
        minus = x.detach().clone()
    with flow.at("center"):
        assert torch.equal(x.detach(), center)
    assert torch.equal(x.detach(), center)
    torch.testing.assert_close(plus + minus, 2 * center)
    assert float((plus - minus).norm()) / 2 == pytest.approx(flow.stats["rod_length"], rel=1e-3)
    flow.discretize()
    for _ in range(steps - 1 if form == "signed" else steps):
        plain.step(closure_of(plain, lambda: loss(y)))
    torch.testing.assert_close(x.detach(), y.detach(), rtol=0, atol=1e-2)
    assert float((center - y.detach()).norm()) > 1


def test_a_running_optimizer_goes_on_as_a_flow() -> None:
    problem = make_problem("toy")
    adam = torch.optim.Adam(problem.model.parameters(), lr=0.01)
    for _ in range(25):
        adam.step(closure_of(adam, problem.loss))
    optimizer = RodFlow(problem.model.parameters(), adam, warmup=3)
    loss_before = float(problem.loss().detach())
    losses = [float(optimizer.step(closure_of(optimizer, problem.loss))) for _ in range(30)]
    assert losses[0] == pytest.approx(loss_before, rel=1e-13)
    assert losses[-1] < losses[0]
    assert optimizer.param_groups[0]["time"] == 25 + 3 + 26


@pytest.mark.parametrize("cut", [4, 11, 12, 40])
@pytest.mark.parametrize("method", ["heavy-ball", "scalar-adam", "nadam"])
def test_resume_is_bit_identical(method, cut) -> None:
    def make(p):
        return Discrete(p, method, SETTINGS[method]["toy"], *BETAS[method])

    whole, optimizer, closure = toy_flow(make, seed=3)
    for _ in range(60):
        optimizer.step(closure)
    first, before, closure = toy_flow(make, seed=3)
    for _ in range(cut):
        before.step(closure)
    saved = pickle.loads(pickle.dumps(before.state_dict()))
    weights = copy.deepcopy(first.model.state_dict())
    # Other settings, which the saved ones replace, as in torch.
    second, after, closure = toy_flow(lambda p: Discrete(p, method, 0.5), warmup=2)
    second.model.load_state_dict(weights)
    after.load_state_dict(saved)
    for _ in range(60 - cut):
        after.step(closure)
    assert torch.equal(flatten(second.model.parameters()), flatten(whole.model.parameters()))
    assert after.stats == optimizer.stats or math.isnan(optimizer.stats["ratio"])


def test_copies_and_pickles_go_on_alike() -> None:
    problem, optimizer, closure = toy_flow()
    for _ in range(15):
        optimizer.step(closure)
    both = copy.deepcopy({"optimizer": optimizer})["optimizer"]
    assert type(both.like) is torch.optim.Adam
    assert both.stats == optimizer.stats
    assert both.current_map() == optimizer.current_map()
    assert pickle.loads(pickle.dumps(optimizer)).current_map() == optimizer.current_map()
    pair = copy.deepcopy((problem.model, optimizer))
    twin = make_problem("toy")
    for _ in range(5):
        optimizer.step(closure)
        twin.model.load_state_dict(pair[0].state_dict())

        def of_the_copy() -> Tensor:  # gradients of the copied model by way of a twin that has the data
            twin.model.load_state_dict(pair[0].state_dict())
            twin.model.zero_grad()
            loss = twin.loss()
            loss.backward()
            for mine, other in zip(pair[0].parameters(), twin.model.parameters(), strict=True):
                mine.grad = other.grad.clone()
            return loss

        pair[1].step(of_the_copy)
    assert torch.equal(flatten(pair[0].parameters()), flatten(problem.model.parameters()))


def test_the_order_of_the_parameters_does_not_matter() -> None:
    ends = []
    for turn in (1, -1):
        parameters = [nn.Parameter(START[:2].clone()), nn.Parameter(START[2:].clone())]
        adam = torch.optim.Adam(parameters, lr=0.02)

        def loss(of=parameters) -> Tensor:
            return bumpy(torch.cat(of))

        for _ in range(10):
            adam.step(closure_of(adam, loss))
        flow = RodFlow(parameters[::turn], adam, warmup=2)
        for _ in range(10):
            flow.step(closure_of(flow, loss))
        ends.append(flatten(parameters))
    assert torch.equal(*ends)


def test_a_parameter_that_is_frozen_on_the_way_stays() -> None:
    parameters = [nn.Parameter(START[:2].clone()), nn.Parameter(START[2:].clone())]
    flow = RodFlow(parameters, torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1), warmup=3)
    for number in range(30):
        if number in (2, 10):
            parameters[0].requires_grad_(number == 10)
            frozen = parameters[0].detach().clone()
        flow.step(closure_of(flow, lambda: bumpy(torch.cat(parameters))))
        if 2 <= number < 10:
            assert torch.equal(parameters[0].detach(), frozen)
    assert not torch.equal(parameters[0].detach(), frozen)


def test_a_second_hand_over_changes_nothing() -> None:
    problem, flow, closure = toy_flow()
    for _ in range(15):
        flow.step(closure)
    adam = flow.discretize()
    for _ in range(5):
        adam.step(closure_of(adam, problem.loss))
    weights, moments = flatten(problem.model.parameters()), read_moments(adam)
    assert flow.discretize() is adam
    with flow.at("plus"):
        assert torch.equal(flatten(problem.model.parameters()), weights)
    assert read_moments(adam).steps == moments.steps
    assert torch.equal(read_moments(adam).m, moments.m)


def test_a_step_that_overflows_moves_nothing() -> None:
    x = nn.Parameter(torch.ones(3))
    flow = RodFlow([x], torch.optim.SGD([x], lr=1e38), warmup=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="the step is not finite; lower the learning rate"):
            flow.step(closure_of(flow, lambda: (1e3 * x).sum()))
        assert torch.equal(x.detach(), torch.ones(3))
        assert flow.param_groups[0]["steps"] == 0


def test_the_closure_is_looked_at_again_now_and_then() -> None:
    x = nn.Parameter(torch.ones(3))
    flow = RodFlow([x], torch.optim.SGD([x], lr=1e-3))
    evaluations, draws, spoiled = [], iter(range(10_000)), False

    def closure() -> Tensor:
        evaluations.append(1)
        flow.zero_grad()
        loss = x.square().sum() * (1 + spoiled * next(draws))
        loss.backward()
        return loss

    counts = []
    for _ in range(99):
        evaluations.clear()
        flow.step(closure)
        counts.append(len(evaluations))
    assert counts == [3] + 10 * [1] + 88 * [4]
    spoiled = True
    flow.step(closure)  # the hundredth: not looked at
    with pytest.raises(ValueError, match="at the same weights"):
        flow.step(closure)


def test_what_else_disturbs_the_optimizer_is_refused() -> None:
    problem, flow, closure = toy_flow(lambda p: torch.optim.SGD(p, lr=0.4))
    flow.step(closure)
    with flow.at("center"), pytest.raises(ValueError, match=r"leave at\(\) before step"):
        flow.step(closure)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="noise under autocast"):
        flow.step(closure)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="noise under autocast"):
        sharpness(problem.loss, list(problem.model.parameters()))
    problem.model.float()
    with pytest.raises(
        ValueError, match=r"241 numbers of torch.float32 on cpu, the kept before is 241 of torch.float64"
    ):
        flow.step(closure)
    problem.model.double()
    saved = flow.state_dict()
    saved["state"] = {0: {"before": torch.zeros(5)}}
    with pytest.raises(ValueError, match="the state's before is of 5 numbers, the parameters are 241"):
        flow.load_state_dict(saved)
    with pytest.raises(ValueError, match="not the state of a RodFlow optimizer"):
        flow.load_state_dict({})
    flow.like.param_groups[0]["lr"] = 0.2
    with pytest.raises(ValueError, match="something else changes the learning rate of like"):
        flow.step(closure)
    words = nn.Embedding(3, 2, sparse=True)
    sparse = RodFlow(words.parameters(), torch.optim.SGD(words.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="sparse gradients have no common vector"):
        sparse.step(closure_of(sparse, lambda: words(torch.tensor([1])).square().sum()))


def test_discrete_keeps_to_one_group_and_its_own_state() -> None:
    x = nn.Parameter(torch.ones(3))
    optimizer = Discrete([x], "adam", 0.1)
    with pytest.raises(ValueError, match="give them in one group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(ValueError, match="not the state of a Discrete optimizer"):
        optimizer.load_state_dict(torch.optim.Adam([x]).state_dict())
    frozen, y = nn.Parameter(torch.ones(1), requires_grad=False), nn.Parameter(torch.ones(2))
    optimizer = Discrete([frozen, y], "heavy-ball", 0.1, 0.5)
    optimizer.step(closure_of(optimizer, lambda: y.sum()))
    torch.testing.assert_close(read_moments(optimizer).m, torch.tensor([0.0, 0.5, 0.5]))


@pytest.mark.parametrize(
    ("method", "twin"),
    [
        ("gd", lambda p: torch.optim.SGD(p, lr=0.05)),
        ("heavy-ball", lambda p: torch.optim.SGD(p, lr=0.05 * 0.4, momentum=0.6)),
        ("nesterov", lambda p: torch.optim.SGD(p, lr=0.05 * 0.4, momentum=0.6, nesterov=True)),
        ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.05, alpha=0.95, eps=1e-3)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.6, 0.95), eps=1e-3)),
    ],
)
def test_discrete_equals_torch(method, twin) -> None:
    x, y = nn.Parameter(START.clone()), nn.Parameter(START.clone())
    ours, theirs = Discrete([x], method, 0.05, 0.6, 0.95, 1e-3), twin([y])
    for _ in range(30):
        ours.step(closure_of(ours, lambda: bumpy(x)))
        theirs.step(closure_of(theirs, lambda: bumpy(y)))
    torch.testing.assert_close(x.detach(), y.detach(), rtol=0, atol=1e-13)


def test_odd_settings_of_torch_have_thresholds() -> None:
    x = [nn.Parameter(torch.zeros(1))]
    assert eos_threshold(torch.optim.SGD(x, lr=0.0)) == math.inf
    assert eos_threshold(torch.optim.NAdam(x, lr=0.1, betas=(0.0, 0.9)), 7) == pytest.approx(20)
    assert eos_threshold(torch.optim.NAdam(x, lr=1.0), 1e9) == pytest.approx(13.571428571428571)
    named = torch.optim.SGD(
        [{"params": x, "name": "a"}, {"params": [nn.Parameter(torch.zeros(1))], "name": "b"}], lr=0.1
    )
    assert eos_threshold(named) == pytest.approx(20)
    assert eos_threshold(torch.optim.SGD(x, lr=torch.tensor(0.125))) == 16


def test_a_schedule_reaches_the_flow() -> None:
    _, optimizer, closure = toy_flow(lambda p: torch.optim.SGD(p, lr=0.4))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20, gamma=0.5)
    for _ in range(30):
        optimizer.step(closure)
        schedule.step()
    assert optimizer.stats["threshold"] == pytest.approx(10)
    assert optimizer.like.param_groups[0]["lr"] == pytest.approx(0.2)


def test_missing_gradients_count_as_zero() -> None:
    x, unused, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
    frozen.requires_grad_(False)
    everything = [x, unused, frozen]
    optimizer = RodFlow(everything, torch.optim.Adam(everything, lr=0.1))
    for _ in range(20):
        optimizer.step(closure_of(optimizer, lambda: x.square().sum()))
    assert torch.equal(unused.detach(), torch.ones(2))
    assert torch.equal(frozen, torch.ones(1))
    assert float(x.detach().abs().max()) < 0.9
    assert math.isfinite(optimizer.stats["rod_sharpness"])


def test_dropout_is_the_same_at_both_ends() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 1)).double()
    x = torch.randn(16, 4, dtype=torch.float64)
    optimizer = RodFlow(net.parameters(), torch.optim.SGD(net.parameters(), lr=0.01))
    masks = []
    net[2].register_forward_hook(lambda module, given, out: masks.append((out == 0).sum().item()))
    for number in range(40):
        masks.clear()
        optimizer.step(closure_of(optimizer, lambda: (net(x) - 1).square().mean()))
        assert len(set(masks)) == 1
        if number == 20:
            first = masks[0]
            assert len(masks) == 4
    assert masks[0] != first  # but not in all steps


def test_other_data_in_a_step_are_refused() -> None:
    net = nn.Linear(3, 1)
    optimizer = RodFlow(net.parameters(), torch.optim.Adam(net.parameters()))
    batches = iter(np.random.default_rng(0).normal(size=(100, 8, 3)))
    before = flatten(net.parameters())

    def loss() -> Tensor:
        return net(torch.tensor(next(batches), dtype=torch.float32)).square().mean()

    with pytest.raises(ValueError, match=r"gave the loss .* and then .* at the same weights .* one batch"):
        optimizer.step(closure_of(optimizer, loss))
    assert torch.equal(flatten(net.parameters()), before)


def test_an_error_at_an_end_leaves_the_center() -> None:
    problem, optimizer, closure = toy_flow()
    for _ in range(20):
        optimizer.step(closure)
    before = flatten(problem.model.parameters())
    state = copy.deepcopy(optimizer.state_dict())

    calls = []

    def broken() -> Tensor:
        calls.append(1)
        loss = closure()
        return loss * math.nan if len(calls) == 3 else loss

    with pytest.raises(ValueError, match=r"not finite at an end of the rod; lower the learning rate \(now 0.01\)"):
        optimizer.step(broken)
    assert torch.equal(flatten(problem.model.parameters()), before)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert torch.equal(flatten(problem.model.parameters()), before)
    vectors, kept = optimizer.state_dict()["state"][0], state["state"][0]
    assert all(torch.equal(vectors[name], kept[name]) for name in kept)
    optimizer.step(closure)


def test_refusals_of_the_optimizer() -> None:
    x = nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([x])
    for settings, message in (
        ({"like": "adam"}, "like must be an optimizer, such as torch.optim.Adam"),
        ({"substeps": 0}, "substeps must be a whole number of at least 1, got 0"),
        ({"substeps": 1, "form": "outer"}, "substeps must be a whole number of at least 2, got 1"),
        ({"warmup": 0}, "warmup must be a whole number of at least 1, got 0"),
        ({"form": "inner"}, "unknown form 'inner'; choose one of: signed, outer"),
        ({"floor": 1}, "floor must be True or False, got 1"),
        ({"params": [nn.Parameter(torch.ones(3))]}, "params and like must have the same parameters"),
        ({"params": [{"params": [x], "lr": 0.1}]}, r"settings belong to like, got \['lr'\] in a parameter group"),
        ({"like": torch.optim.SGD([x], lr=0.0)}, "the learning rate of like is 0"),
        ({"like": torch.optim.SGD([x], momentum=0.9, dampening=0.5)}, "first step with dampening is unlike the others"),
    ):
        with pytest.raises(ValueError, match=message):
            RodFlow(**{"params": [x], "like": adam, **settings})
    mixed = [x, nn.Parameter(torch.ones(2, dtype=torch.float64))]
    with pytest.raises(ValueError, match="all parameters must have one dtype and one device"):
        RodFlow(mixed, torch.optim.Adam(mixed))
    optimizer = RodFlow([x], adam)
    for closure in (None, 3.0):
        with pytest.raises(ValueError, match=r"evaluates the loss several times a step: step\(closure\)"):
            optimizer.step(closure)
    with pytest.raises(ValueError, match=r"no parameter has a gradient: the closure must call loss\.backward"):
        optimizer.step(lambda: x.sum())
    with pytest.raises(ValueError, match="the closure returned None: it must return the loss"):
        optimizer.step(lambda: None)
    with (
        pytest.raises(ValueError, match="unknown place 'left'; choose one of: center, plus, minus"),
        optimizer.at("left"),
    ):
        pass
    with pytest.raises(ValueError, match="make a new one for more parameters"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(ValueError, match="not the state of a RodFlow optimizer of this version"):
        optimizer.load_state_dict(adam.state_dict())
    other = RodFlow([x], torch.optim.SGD([x], lr=0.1))
    with pytest.raises(ValueError, match="the state follows SGD, this optimizer Adam: pass like=SGD"):
        optimizer.load_state_dict(other.state_dict())


def test_a_gradient_scaler_is_refused() -> None:
    x = nn.Parameter(torch.ones(3))
    optimizer = RodFlow([x], torch.optim.SGD([x], lr=0.1))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(x.square().sum()).backward()
    with pytest.raises(ValueError, match="RodFlow reads gradients, which a GradScaler scales"):
        scaler.step(optimizer)
    assert torch.equal(x.detach(), torch.ones(3))


def _loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x).squeeze(1) - x.sum(1).sin()).square().mean()


def _rank(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)))
    optimizer = RodFlow(model.parameters(), torch.optim.Adam(model.parameters(), lr=0.01))
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(rank))
    for _ in range(30):
        optimizer.step(closure_of(optimizer, functools.partial(_loss_of, model, x)))
    torch.save(flatten(model.parameters()), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    del model, optimizer  # a DDP model that outlives the process group now and then waits for ever on its way out
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.isfinite(first).all()
    assert torch.equal(first, second)


# --- experiments ------------------------------------------------------------------------------------------------------


def test_an_experiment_writes_its_folder_and_is_not_run_twice(tmp_path) -> None:
    settings = TrackingSettings("rmsprop", ("toy", "mlp"), steps=12, sharpness_every=6)
    found = track(settings, tmp_path, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mlp.csv", "mlp.json", "toy.csv", "toy.json", "tracking.png"
    ]  # fmt: skip
    assert found["toy"]["steps"] == 12
    time = (tmp_path / "toy.csv").stat().st_mtime_ns
    assert track(settings, tmp_path, progress=False) == found
    assert (tmp_path / "toy.csv").stat().st_mtime_ns == time
    with pytest.raises(ValueError, match="holds a run of toy with other form, steps: choose another folder"):
        track(TrackingSettings("rmsprop", ("toy",), steps=11, form="outer", sharpness_every=6), tmp_path)


@pytest.mark.parametrize("network", ["cnn", "vit", "prism"])
def test_every_network_can_be_tracked(network, tmp_path) -> None:
    found = track(TrackingSettings("nadam", (network,), steps=2, warmup=1), tmp_path, progress=False)
    assert found[network]["mean_distance_rod"] > 0
    problem = make_problem(network)
    value, vector = sharpness(problem.loss, list(problem.model.parameters()))
    assert value > 0
    assert len(vector) == sum(p.numel() for p in problem.model.parameters())


def test_settings_of_experiments_are_checked() -> None:
    for settings, message in (
        ({"optimizer": "adamw"}, "unknown optimizer 'adamw'; choose one of: gd, heavy-ball"),
        ({"networks": ("rnn",)}, "unknown network 'rnn'; choose one of: toy, mlp, cnn, vit, prism"),
        ({"networks": ()}, "no network is given"),
        ({"dtype": "bfloat16"}, "unknown dtype 'bfloat16'"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"lr": -1.0}, "lr must be a number above 0, got -1.0"),
        ({"optimizer": "gd", "beta1": 0.5}, "gd has no beta1: leave it out"),
        ({"beta2": 1.0}, "beta2 must be a number at least 0 and below 1, got 1.0"),
        ({"form": "inner"}, "unknown form 'inner'"),
    ):
        with pytest.raises(ValueError, match=message):
            TrackingSettings(**{"optimizer": "adam", **settings})
    with pytest.raises(ValueError, match="unknown network 'rnn'"):
        make_problem("rnn")
    with pytest.raises(ValueError, match="at least two crystals, got 0"):
        make_problem("prism", records=[])
