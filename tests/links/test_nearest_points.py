"""Spheres, planes, equations and sets of matrices against definitions nobody here wrote."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize
from torch.func import grad, vmap

import rai_chain as rc

F64 = torch.float64
DTYPES = [F64, torch.float32, torch.bfloat16, torch.float16]
MATRIX = torch.tensor([[1.0, 2.0, -1.0, 0.5, 0.0], [0.0, 1.0, 1.0, -2.0, 3.0]])
LEVELS = torch.tensor([0.3, -0.8])
MAKERS = {
    "non_negative": lambda: rc.non_negative(),
    "l1_sphere": lambda: rc.l1_sphere(1.3),
    "l1_sphere, around": lambda: rc.l1_sphere(0.7, center=0.5),
    "l2_sphere": lambda: rc.l2_sphere(1.3),
    "l2_sphere, around": lambda: rc.l2_sphere(0.7, center=0.5),
    "hyperplane": lambda: rc.hyperplane(MATRIX[:1], 0.7),
    "halfspace": lambda: rc.halfspace(MATRIX[:1], -0.3),
    "affine": lambda: rc.affine(MATRIX, LEVELS),
    "nuclear_ball": lambda: rc.nuclear_ball(1.7),
    "group_l1_ball": lambda: rc.group_l1_ball(1.7),
    "orthogonal": lambda: rc.orthogonal(),
}
WHOLE = ("nuclear_ball", "group_l1_ball", "orthogonal")  # the leaf is one point
every = pytest.mark.parametrize("name", MAKERS)


def draw(*shape, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype)


def violation(name, y):
    """How far a point, float64, is out of its set, by the set's definition."""
    kind, around = name.split(",")[0], 0.5 if "around" in name else 0.0
    l1, l2 = (torch.linalg.vector_norm(y - around, p, dim=1) for p in (1, 2))
    radius, a = 0.7 if around else 1.3, MATRIX.double()
    return {
        "non_negative": lambda: torch.relu(-y),
        "l1_sphere": lambda: (l1 - radius).abs(),
        "l2_sphere": lambda: (l2 - radius).abs(),
        "hyperplane": lambda: (y @ a[0] - 0.7).abs(),
        "halfspace": lambda: torch.relu(y @ a[0] + 0.3),
        "affine": lambda: (y @ a.mT - LEVELS.double()).abs(),
        "nuclear_ball": lambda: torch.relu(torch.linalg.svdvals(y).sum() - 1.7),
        "group_l1_ball": lambda: torch.relu(y.norm(dim=1).sum() - 1.7),
        "orthogonal": lambda: (torch.linalg.svdvals(y) - 1).abs(),
    }[kind]().amax()


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_result_is_in_the_set_and_stays_there_to_the_bit(name, dtype):
    tx = MAKERS[name]()
    for seed in range(40):
        x = 10 ** (seed % 7 - 3.0) * draw(7, 5, seed=seed)
        once = tx.map(x.to(dtype))
        size = max(1.0, float(once.double().abs().sum(1).amax()))
        assert violation(name, once.double()) <= 3 * torch.finfo(dtype).eps * size
        assert torch.equal(tx.map(once), once)


@every
@pytest.mark.parametrize("seed", range(4))
def test_no_point_of_the_set_is_nearer(name, seed):
    """Among projections of many others, near and far."""
    tx, x = MAKERS[name](), 2 * draw(6, 5, seed=seed)
    near, whole = tx.map(x), name in WHOLE
    distance = (lambda y: (x - y).norm()) if whole else (lambda y: (x - y).norm(dim=1))
    for other in range(200):
        around = near if other % 2 else torch.zeros(6, 5, dtype=F64)
        y = tx.map(around + 10.0 ** (other % 7 - 5) * draw(6, 5, seed=1000 + other))
        assert (distance(near) <= distance(y) + 1e-12).all()


QP = {  # of 5 elements: linear constraints low <= A y <= high, or a function that is 0
    "non_negative": LinearConstraint(np.eye(5), lb=0),
    "l2_sphere": {"type": "eq", "fun": lambda y: y @ y - 1.69},
    "l2_sphere, around": {"type": "eq", "fun": lambda y: (y - 0.5) @ (y - 0.5) - 0.49},
    "hyperplane": LinearConstraint(MATRIX[:1].numpy(), 0.7, 0.7),
    "halfspace": LinearConstraint(MATRIX[:1].numpy(), ub=-0.3),
    "affine": LinearConstraint(MATRIX.numpy(), LEVELS.numpy(), LEVELS.numpy()),
}


@pytest.mark.parametrize("name", QP)
def test_the_nearest_point_by_quadratic_programming(name):
    for seed in range(3):
        x = 2 * draw(5, seed=seed).numpy()
        found = minimize(
            lambda y, x=x: ((y - x) ** 2).sum(),
            x / 2,
            constraints=[QP[name]],
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        ours = MAKERS[name]().map(torch.tensor(x)[None])[0]
        np.testing.assert_allclose(ours, found.x, atol=2e-6)


@pytest.mark.parametrize("center", [0.0, 0.5])
def test_the_l1_sphere_is_the_best_of_its_faces(center):
    """By a bisection for each of the signs that a point may have: each face is a simplex."""
    for seed in range(20):
        x = (0.6 * draw(4, seed=seed)).numpy() - center
        x[seed % 4] *= seed % 3  # some are at the center
        best = np.inf
        for signs in np.stack(np.meshgrid(*[[-1, 1]] * 4), -1).reshape(-1, 4):
            low, high = -10.0, 10.0
            for _ in range(200):
                middle = (low + high) / 2
                over = np.maximum(signs * x - middle, 0).sum() > 0.7
                low, high = (middle, high) if over else (low, middle)
            best = min(best, np.linalg.norm(x - signs * np.maximum(signs * x - high, 0)))
        y = rc.project_l1_sphere(torch.tensor(x + center)[None], 0.7, center)[0].numpy() - center
        assert abs(np.abs(y).sum() - 0.7) < 1e-12
        assert abs(np.linalg.norm(x - y) - best) < 1e-12


# ------------------------------------------------------------------ derivatives


@every
@pytest.mark.parametrize("shape", [(3, 5), (6, 5)], ids=str)
def test_the_first_and_the_second_derivative_by_finite_differences(name, shape):
    for seed in range(2):
        x = (2 * draw(*shape, seed=seed)).requires_grad_()
        move = MAKERS[name]().map
        assert torch.autograd.gradcheck(move, x)
        w = draw(*shape, seed=9)
        assert torch.autograd.gradgradcheck(lambda x, w=w, move=move: (w * move(x)).sum(), x)
        loss = lambda x, w=w, move=move: (w * move(x)).sum()  # noqa: E731
        torch.testing.assert_close(grad(loss)(x.detach()), torch.autograd.grad(loss(x), x)[0])


@pytest.mark.parametrize(
    "make",
    [rc.l1_sphere, rc.l2_sphere, rc.nuclear_ball, rc.group_l1_ball],
    ids=lambda m: m.__name__,
)
def test_the_derivative_of_the_radius(make):
    x, w = 2 * draw(4, 5), draw(4, 5, seed=1)
    epsilon = torch.tensor(0.9, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: (w * make(e).map(x)).sum(), epsilon)
    assert torch.autograd.gradgradcheck(lambda e: (w * make(e).map(x)).square().sum(), epsilon)


def test_the_derivative_of_planes_and_equations():
    x, normal = draw(4, 5), draw(4, 5, seed=1).requires_grad_()
    offset = draw(4, seed=2).requires_grad_()
    for make in (rc.project_hyperplane, rc.project_halfspace):
        assert torch.autograd.gradcheck(lambda a, b, make=make: make(x, a, b), (normal, offset))
    matrix, levels = MATRIX.double().requires_grad_(), LEVELS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: rc.project_affine(x, a, b), (matrix, levels))


@pytest.mark.parametrize("shape", [(4, 4), (4, 2), (2, 5), (1, 3)], ids=str)
def test_equal_singular_values_do_a_derivative_no_harm(shape):
    """An orthogonal matrix has nothing else, and torch's decomposition no derivative there."""
    base = torch.linalg.qr(draw(5, 5))[0][: shape[0], : shape[1]]
    base = rc.project_orthogonal(base)
    for x in (base, 3 * base):
        w, x = draw(*shape, seed=1), x.clone().requires_grad_()
        for tx in (rc.orthogonal(), rc.nuclear_ball(0.4 * min(shape))):
            assert torch.autograd.gradcheck(lambda x, tx=tx, w=w: (w * tx.map(x)).sum(), x)
            assert torch.autograd.gradgradcheck(lambda x, tx=tx, w=w: (w * tx.map(x)).sum(), x)


def test_the_derivative_in_a_set_is_one_and_at_its_ends_finite():
    for x in (torch.zeros(2, 3), torch.ones(2, 3), torch.eye(2, 3), 1e-200 * torch.ones(2, 3)):
        x = x.double()
        for make in (rc.nuclear_ball, rc.group_l1_ball):
            inside = grad(lambda x, make=make: make(9.0).map(x).sum())(x)
            assert torch.equal(inside, torch.ones_like(x))
            for epsilon in (0.0, 1e-12, 1.0, 2.0**0.5, 9.0):
                e = torch.tensor(epsilon, dtype=F64)
                for i in range(2):
                    move = lambda x, e, make=make: make(e).map(x).sum()  # noqa: E731
                    assert grad(move, i)(x, e).isfinite().all()
        for make in (rc.l1_sphere, rc.l2_sphere):
            for radius in (0.0, 1e-12, 1.0, 1e9):
                slope = grad(lambda x, r=radius, make=make: make(r).map(x).sum())(x)
                assert slope.isfinite().all()


# ------------------------------------------------------------------ edges


@every
def test_nan_is_seen_and_stays_in_its_row(name):
    x = draw(4, 5)
    x[1, 2] = torch.nan
    y = MAKERS[name]().map(x)
    rows = range(4) if name in WHOLE else [1]
    for i in range(4):
        seen = y[i].isnan()
        assert seen.all() if i in rows and name != "non_negative" else seen.any() == (i in rows)


def test_an_infinite_element_is_the_limit_where_there_is_one():
    inf = torch.inf
    x = torch.tensor([[inf, 3.0, -inf, 0.0], [-inf, 1.0, 0.0, 2.0]])
    far = x.nan_to_num(posinf=1e12, neginf=-1e12).double()
    for tx in (rc.l1_sphere(1.5), rc.l2_sphere(1.5), rc.l2_sphere(1.5, 0.1)):
        torch.testing.assert_close(tx.map(x).double(), tx.map(far), rtol=1e-5, atol=1e-5)
    shares = torch.tensor([[0.5**0.5, 0.0, -(0.5**0.5), 0.0], [-1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(rc.project_group_l1_ball(x, 2.0), shares)
    assert torch.equal(rc.project_non_negative(x), x.clamp(min=0.0))
    for tx in (rc.hyperplane(1.0, 1.0), rc.affine(torch.ones(1, 4), 1.0)):
        assert tx.map(x).isnan().all()
    assert rc.project_halfspace(x, 1.0, 1.0)[0].isnan().all()
    assert torch.equal(rc.project_halfspace(x, 1.0, 1.0)[1], x[1])  # it is inside
    sides = torch.tensor([[0.0, 1.0, 0.0, 1.0]])  # where the plane does not cut them they stay
    y = rc.project_hyperplane(x[:1], sides, 1.0)
    torch.testing.assert_close(y, torch.tensor([[inf, 2.0, -inf, -1.0]]))
    for tx in (rc.orthogonal(), rc.nuclear_ball(1.0)):
        assert tx.map(x).isnan().all()


@pytest.mark.parametrize("magnitude", [1e-300, 1e-160, 1e160, 1e300])
def test_every_magnitude(magnitude):
    x = magnitude * torch.tensor([[3.0, 4.0]], dtype=F64)
    for tx, y in (
        (rc.l2_sphere(2.0), [[1.2, 1.6]]),
        (rc.hyperplane(magnitude, 2.0 * magnitude), None),
        (rc.group_l1_ball(2.0 * magnitude), [[1.2 * magnitude, 1.6 * magnitude]]),
        (rc.nuclear_ball(2.0 * magnitude), [[1.2 * magnitude, 1.6 * magnitude]]),
        (rc.orthogonal(), [[0.6, 0.8]]),
    ):
        if y is not None:
            torch.testing.assert_close(tx.map(x), torch.tensor(y, dtype=F64), rtol=1e-14, atol=0)
        assert tx.map(x).isfinite().all()


def test_rows_that_are_far_are_brought_to_a_plane_to_rounding():
    for seed in range(20):
        x = 1e12 * draw(3, 5, seed=seed)
        for y in (rc.project_hyperplane(x, MATRIX[:1], 0.7), rc.project_affine(x, MATRIX[:1], 0.7)):
            assert ((y @ MATRIX[0].double() - 0.7).abs() <= 1e-15 * y.abs().sum(1)).all()


def test_what_a_plane_does_not_see_does_not_hide_how_far_it_is():
    x = torch.tensor([[1e30, 5.0]], dtype=torch.float32)
    seen = torch.tensor([[0.0, 1.0]])
    for y in (rc.project_hyperplane(x, seen, 1.0), rc.project_affine(x, seen, 1.0)):
        assert torch.equal(y, torch.tensor([[1e30, 1.0]]))


def test_from_the_center_it_goes_somewhere_and_without_a_plane_nowhere():
    zero = torch.zeros(2, 4)
    for center in (0.0, 1.0):
        away = rc.project_l2_sphere(zero + center, 3.0, center) - center
        assert torch.equal(away.norm(dim=1), torch.full((2,), 3.0))
    assert torch.equal(rc.project_l1_sphere(zero, 2.0), torch.full((2, 4), 0.5))
    x = draw(3, 4)
    assert torch.equal(rc.project_hyperplane(x, 0.0, 1.0), x)
    assert torch.equal(rc.project_halfspace(x, 0.0, -1.0), x)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (2, 3, 2, 2), (5,), ()], ids=str)
def test_sets_of_matrices_take_every_shape(shape):
    x = draw(*shape)
    flat = x.flatten(1) if x.ndim > 1 else x.reshape(1, -1)
    u, s, v = torch.linalg.svd(flat, full_matrices=False)
    torch.testing.assert_close(rc.project_orthogonal(x), (u @ v).reshape(shape))
    small = rc.project_l1_ball(s, 0.3, param_ndim=None)
    torch.testing.assert_close(rc.project_nuclear_ball(x, 0.3), ((u * small) @ v).reshape(shape))
    norms = rc.project_l1_ball(flat.norm(dim=1), 0.3, param_ndim=None)
    groups = flat * (norms / flat.norm(dim=1))[:, None]
    if len(shape) > 1:
        torch.testing.assert_close(rc.project_group_l1_ball(x, 0.3), groups.reshape(shape))
    one = rc.project_group_l1_ball(x, 0.3, None)
    torch.testing.assert_close(one, rc.project_l2_ball(x, 0.3, param_ndim=None))


def test_group_l1_ball_is_never_left_and_low_ranks_are_made():
    for dtype in DTYPES:
        for seed in range(10):
            x = draw(30, 20, seed=seed, dtype=dtype)
            y = rc.project_group_l1_ball(x, 2.0).double()
            assert 1.9 < y.norm(dim=1).sum() <= 2.0
    low = rc.project_nuclear_ball(draw(30, 20), 5.0)
    assert torch.linalg.matrix_rank(low) < 20
    with pytest.raises(
        ValueError, match=r"`group_ndim` must satisfy abs\(group_ndim\) <= ndim  Got"
    ):
        rc.group_l1_ball(1.0, 3).init({"w": torch.ones(2, 3)})


# ------------------------------------------------------------------ homes of equations


def test_equations_without_a_solution_and_repeated_ones():
    matrix = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [2.0, 2.0, 0.0]])
    y = rc.project_affine(draw(4, 3), matrix, torch.tensor([1.0, 1.0, 2.0]))
    torch.testing.assert_close(y[:, :2].sum(1), torch.ones(4, dtype=F64))
    y = rc.project_affine(draw(4, 3), matrix, torch.tensor([1.0, 3.0, 4.0]))
    torch.testing.assert_close(y[:, :2].sum(1), torch.full((4,), 2.0, dtype=F64))
    assert torch.equal(rc.project_affine(y, matrix, torch.tensor([1.0, 3.0, 4.0])), y)


@pytest.mark.parametrize("rows", [None, -1, 2])
def test_equations_in_every_home(rows):
    own = {} if rows == -1 else {"param_ndim": rows}
    size = {None: 40, -1: 10, 2: 10}[rows]
    matrix = draw(2, size, seed=5).float()
    tx = rc.chain(rc.scale(-0.1), rc.affine(matrix, LEVELS, **own))
    p, g = draw(4, 2, 5, dtype=torch.float32), draw(4, 2, 5, seed=1, dtype=torch.float32)
    new, _ = tx.step(p, g, tx.init(p))
    found = new.reshape(-1, size) @ matrix.mT
    torch.testing.assert_close(found, LEVELS.expand_as(found), rtol=1e-4, atol=1e-5)
    for twin in (pickle.loads(pickle.dumps(tx)), copy.deepcopy(tx)):
        assert repr(twin) == repr(tx)
        assert torch.equal(twin.step(p, g, twin.init(p))[0], new)
    leaf = p.clone().requires_grad_()
    optimizer = tx.optimizer([leaf])
    leaf.grad = g.clone()
    optimizer.step()
    assert torch.equal(leaf, new)
    batch = torch.stack([p, 2 * p])
    many = vmap(lambda p: tx.step(p, g, tx.init(p))[0])(batch)
    torch.testing.assert_close(many[0], new, rtol=1e-5, atol=1e-6)
    levels = vmap(lambda b: rc.project_affine(p, matrix, b, **own))(torch.stack([LEVELS, -LEVELS]))
    torch.testing.assert_close(levels[1], rc.project_affine(p, matrix, -LEVELS, **own))
    compiled = torch.compile(tx.step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(p, g, tx.init(p))[0], new, rtol=1e-5, atol=1e-6)


def test_equations_over_the_whole_tree():
    tree = {"a": draw(2), "b": [draw(1, 2, seed=1), None], "c": draw(0), "d": draw(seed=2)}
    new = rc.project_affine(tree, MATRIX, LEVELS, param_ndim="tree")
    joined = torch.cat([new["a"], new["b"][0][0], new["d"][None]])
    torch.testing.assert_close(MATRIX.double() @ joined, LEVELS.double())


def test_equations_say_what_they_take():
    tx = rc.affine(MATRIX, LEVELS)
    assert repr(tx) == "affine(matrix=tensor(2, 5), offset=tensor(2,))"
    fits = r"`matrix` must have a column for each of the 3 elements of a row of `\['w'\]`  Got"
    with pytest.raises(ValueError, match=fits):
        tx.init({"w": torch.ones(2, 3)})
    with pytest.raises(
        ValueError, match=fits.replace("3", "7").replace(r"`\['w'\]`", "all leaves")
    ):
        rc.project_affine({"w": torch.ones(7)}, MATRIX, LEVELS, param_ndim="tree")
    with pytest.raises(ValueError, match=r"`offset` must be a number or of shape \(2,\)"):
        rc.affine(MATRIX, torch.ones(3))
    with pytest.raises(ValueError, match=r"`matrix` must be of shape \(M, D\)  Got: \(5,\)"):
        rc.affine(MATRIX[0])
    for bad in (3.0, torch.ones(2, 2, dtype=torch.int64)):
        with pytest.raises(TypeError, match=r"`matrix` must be a floating tensor \(M, D\)  Got"):
            rc.affine(bad)


@pytest.mark.parametrize("name", ["hyperplane", "halfspace"])
def test_planes_have_values_for_each_row_and_one_for_the_whole_tree(name):
    make = getattr(rc, name)
    x, normal, offset = draw(3, 4), draw(3, 4, seed=1), draw(3, seed=2)
    loop = torch.stack(
        [
            make(a, float(b), param_ndim=None).map(r)
            for r, a, b in zip(x, normal, offset, strict=True)
        ]
    )
    torch.testing.assert_close(make(normal, offset).map(x), loop)
    torch.testing.assert_close(
        vmap(lambda x, a, b: make(a, b, param_ndim=None).map(x))(x, normal, offset), loop
    )
    tree = {"a": x, "b": [draw(5, seed=3)]}
    across = {"a": normal, "b": [draw(5, seed=4)]}
    new = make(across, -9.0, param_ndim="tree").map(tree)
    product = (new["a"] * normal).sum() + (new["b"][0] * across["b"][0]).sum()
    assert abs(product + 9.0) < 1e-12


@pytest.mark.parametrize("traced", [False, True])
def test_the_sign_of_a_zero_is_kept_with_a_derivative_and_without(traced):
    x = torch.tensor([[1.0, -0.0, 0.0], [-0.0, 0.0, 1.0]]).requires_grad_(traced)
    sets = [rc.l2_sphere(1.0), rc.l1_sphere(1.0), rc.halfspace(1.0, 1.0), rc.orthogonal()]
    sets += [rc.nuclear_ball(2.0), rc.affine(torch.ones(1, 3), 1.0), rc.l1_ball(1.0, low=-1.0)]
    for tx in sets:
        y = tx.map(x)
        assert torch.equal(y, x) and torch.equal(y.signbit(), x.signbit())
    y = rc.l1_ball(1.0).map(torch.tensor([[5.0, -0.5, 0.5]]).requires_grad_(traced))
    assert y[0].signbit().tolist() == [False, True, False]
