"""Random points of the sets: where they lie, how often, and what they are a function of."""

import math

import pytest
import torch
from torch.func import vmap

from rai_chain import random, to_batch

COUNT = 20_000
BALLS = {"l1_ball": 1, "l2_ball": 2, "linf_ball": math.inf}
SPHERES = {"l1_sphere": 1, "l2_sphere": 2, "linf_sphere": math.inf}
ALL = [*BALLS, *SPHERES, "simplex", "box"]
# The mean of the square of one element, of a set of radius one in d dimensions.
SQUARES = {
    "l1_ball": lambda d: 2 / ((d + 1) * (d + 2)),
    "l2_ball": lambda d: 1 / (d + 2),
    "linf_ball": lambda d: 1 / 3,
    "l1_sphere": lambda d: 2 / (d * (d + 1)),
    "l2_sphere": lambda d: 1 / d,
    "linf_sphere": lambda d: (1 + (d - 1) / 3) / d,
}


def key(seed):
    return torch.tensor(seed)


def draw(name, shape, *args, seed=0, **kwargs):
    return getattr(random, name)(key(seed), shape, *args, **kwargs)


def norms(points, p):
    return torch.linalg.vector_norm(points.double(), p, dim=1)


def is_uniform(values):
    """Kolmogorov and Smirnov: of uniform values one set in a thousand fails."""
    values = values.sort().values
    steps = torch.arange(len(values) + 1) / len(values)
    gap = torch.maximum((values - steps[:-1]).abs().max(), (values - steps[1:]).abs().max())
    return gap < 1.95 / math.sqrt(len(values))


@pytest.mark.parametrize("dims", [1, 2, 7])
@pytest.mark.parametrize("name", BALLS)
def test_the_radius_is_distributed_as_volume(name, dims):
    radius = norms(draw(name, (COUNT, dims), 2.0), BALLS[name]) / 2
    assert is_uniform(radius**dims)


@pytest.mark.parametrize("dims", [1, 2, 7])
@pytest.mark.parametrize("name", SQUARES)
def test_the_moments_are_those_of_the_uniform_distribution(name, dims):
    points = draw(name, (COUNT, dims), 3.0).double() / 3
    square = SQUARES[name](dims)
    assert (points.mean(0).abs() < 5 * math.sqrt(square / COUNT)).all()
    products = points[:, :, None] * points[:, None]
    error = 5 * products.std(0) / math.sqrt(COUNT) + 1e-6
    assert ((products.mean(0) - square * torch.eye(dims)).abs() < error).all()


def test_each_element_of_a_box_is_uniform():
    low, high = torch.tensor([-1.0, 2.0, 5.0]), torch.tensor([1.0, 2.5, 5.0])
    points = draw("box", (COUNT, 3), low, high)
    assert ((points >= low) & (points <= high)).all()
    for i in range(2):
        assert is_uniform((points[:, i] - low[i]) / (high[i] - low[i]))


def test_the_simplex_is_covered_uniformly():
    """Then each element is distributed as Beta(1, d - 1)."""
    points = draw("simplex", (COUNT, 4), 2.0) / 2
    assert (points >= 0).all() and (points.sum(1) - 1).abs().max() < 1e-6
    for column in points.T:
        assert is_uniform(1 - (1 - column) ** 3)


@pytest.mark.parametrize("name", ["l1_sphere", "l2_sphere"])
def test_on_a_sphere_of_two_dimensions_the_perimeter_is_covered_uniformly(name):
    x, y = draw(name, (COUNT, 2)).double().T
    angle = torch.atan2(y, x) / (2 * math.pi) % 1
    if name == "l1_sphere":  # one side after another
        side = (4 * angle).floor()
        angle = (side + torch.where(side % 2 == 0, y.abs(), x.abs())) / 4
    assert is_uniform(angle)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*BALLS, *SPHERES])
def test_no_point_is_outside(name, dtype):
    p = {**BALLS, **SPHERES}[name]
    center = torch.linspace(-1, 1, 5).to(dtype)
    points = draw(name, (2000, 5), 0.3, center, dtype=dtype)
    assert points.dtype == dtype
    distance = norms(points.double() - center.double(), p)
    assert (distance <= 0.3 * (1 + 1e-14)).all()
    if name in SPHERES:
        assert (distance > 0.3 - 20 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("name", ALL)
def test_the_same_key_gives_the_same_points_and_another_key_others(name):
    first, again, other = (draw(name, (3, 4), seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert (first != other).float().mean() > 0.7  # a face of a sphere may be the same
    assert len({tuple(row.tolist()) for row in first}) == 3


@pytest.mark.parametrize("name", ALL)
def test_keys_under_vmap_give_what_each_gives_alone(name):
    keys = torch.tensor([3, 8, 9])
    together = vmap(lambda k: getattr(random, name)(k, (2, 4)))(keys)
    alone = torch.stack([getattr(random, name)(k, (2, 4)) for k in keys])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("name", ["l1_ball", "l2_ball", "l1_sphere", "l2_sphere"])
def test_each_row_has_its_own_radius_and_center(name):
    epsilon, center = torch.tensor([0.1, 10.0]), torch.tensor([[5.0], [-5.0]]).expand(2, 6)
    offset = draw(name, (2, 6), epsilon, center) - center
    unit = draw(name, (2, 6))
    assert torch.allclose(offset, unit * epsilon[:, None], atol=1e-5)


@pytest.mark.parametrize("param_ndim", [None, -1, 1])
@pytest.mark.parametrize("name", ["l1_sphere", "l2_sphere", "simplex"])
def test_param_ndim_says_what_a_row_is(name, param_ndim):
    points = draw(name, (2, 3, 4), param_ndim=param_ndim)
    rows = to_batch(points, param_ndim).flatten(1)
    assert torch.allclose(norms(rows, 2 if name == "l2_sphere" else 1), torch.ones(1).double())


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "eager") for name in ALL), ("l1_ball", "inductor")]
)
def test_it_is_one_graph(name, backend):
    torch.compiler.reset()
    sample = getattr(random, name)
    compiled = torch.compile(lambda k: sample(k, (2, 5)), fullgraph=True, backend=backend)
    assert torch.allclose(compiled(key(0)), draw(name, (2, 5)), atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_empty_shapes_are_empty(name):
    assert draw(name, (0, 3)).shape == (0, 3) and draw(name, (3, 0)).shape == (3, 0)


def test_the_finest_numbers_are_drawn_in_float64():
    values = random.uniform(key(0), (1000,), torch.float64)
    assert is_uniform(values) and len(set((values % 2**-24).tolist())) == 1000
    assert torch.equal((values * 2**24).floor() / 2**24, random.uniform(key(0), (1000,)).double())


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(TypeError, match=r"`key` must be a 0-dim int64 tensor  Got: 0"):
        random.l2_ball(0, (2, 3))
    with pytest.raises(ValueError, match=r"`epsilon` must satisfy 0.0 <= epsilon  Got: -1.0"):
        draw("l1_ball", (2, 3), -1.0)
    with pytest.raises(ValueError, match="`epsilon` must have one value, or one for each of the 2"):
        draw("l1_ball", (2, 3), torch.ones(7))
    with pytest.raises(ValueError, match=r"`low` must satisfy low <= high\(= 0.0\)  Got: 1.0"):
        draw("box", (2, 3), 1.0, 0.0)
    with pytest.raises(ValueError, match="`param_ndim` must satisfy"):
        draw("simplex", (2, 3), param_ndim=3)
    with pytest.raises(ValueError, match=r"`dtype` must be torch.float32 or torch.float64"):
        random.uniform(key(0), (2,), torch.float16)
