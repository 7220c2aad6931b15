"""Attacks against loops written plainly, against other libraries, and what holds of all of them."""

import copy
import math
import warnings
from functools import partial

import pytest
import rai_toolbox.optim as theirs
import torch
from rai_toolbox.perturbations import gradient_ascent
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import rai_chain as rc
from rai_chain import attacks
from rai_chain.attacks.climb import losses

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import foolbox
    import torchattacks

INF = math.inf
PART = 0.2917  # of the radius, a step: with a fourth, pixels would come to rest at equal heights
EPSILON = {1: 2.0, 2: 0.6, INF: 0.1}
NORMS = pytest.mark.parametrize("norm", [1, 2, INF])


@pytest.fixture(scope="module")
def digits():
    """A small network that knows the digits, and 64 images of them."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optim = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(150):
            optim.zero_grad()
            cross_entropy(net(images[64:]), labels[64:]).backward()
            optim.step()
    return net.eval(), images[:64], labels[:64]


def doubled(net):
    return copy.deepcopy(net).double()


def accuracy(net, images, labels):
    return (net(images).argmax(1) == labels).float().mean().item()


def lengths(images, others, norm):
    return torch.linalg.vector_norm((images.double() - others.double()).flatten(1), norm, dim=1)


# ------------------------------------------------------------------ the rules, written plainly


def nearest(offset, norm, epsilon):
    """The nearest point of a ball around 0: by bisection where it has no short formula."""
    if norm == INF:
        return offset.clamp(-epsilon, epsilon)
    if torch.linalg.vector_norm(offset, norm) <= epsilon:
        return offset
    if norm == 2:
        return offset * epsilon / offset.norm()
    low, high = 0.0, offset.abs().max().item()
    for _ in range(100):
        middle = (low + high) / 2
        inside = (offset.abs() - middle).clamp(min=0).sum() <= epsilon
        low, high = (low, middle) if inside else (middle, high)
    return offset.sign() * (offset.abs() - high).clamp(min=0)


def along(gradient, norm):
    return gradient.sign() if norm == INF else gradient / torch.linalg.vector_norm(gradient, norm)


def free(gradient, x):
    """The gradient where a pixel may move."""
    leaves = ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))
    return torch.where(leaves, 0, gradient)


def sparse(gradient, x, q):
    """The signs of the largest elements of those that may move, at L1 length 1."""
    gradient = free(gradient, x)
    kept = gradient.abs().argsort(descending=True, stable=True)[: round((1 - q) * len(x))]
    signs = torch.zeros_like(x)
    signs[kept] = gradient[kept].sign()
    return signs / signs.abs().sum()


def vertex(gradient, norm):
    if norm != 1:
        return along(gradient, norm)
    first = gradient.abs().argmax()
    return torch.zeros_like(gradient).index_fill(0, first, gradient[first].sign().item())


def plainly(rule, net, images, labels, epsilon, norm, steps, size, sign=1.0):
    """An attack on one image after the other, in float64: the points after the last step."""
    net, found = doubled(net), []
    for image, label in zip(images.double(), labels, strict=True):
        center = x = image.flatten()
        total = torch.zeros_like(x)
        for step in range(steps):
            at = x.clone().requires_grad_()
            loss = cross_entropy(net(at.view(1, *image.shape)), label[None])
            gradient = sign * torch.autograd.grad(loss, at)[0]
            if rule == "frank_wolfe":
                rate = 2.0 / (2.0 + step)
                s = center + epsilon * vertex(free(gradient, x), norm)
                x = (1 - rate) * x + rate * s
            else:
                total = total + along(gradient, 1)
                if rule == "mi_fgsm":
                    move = total.sign()
                else:
                    move = sparse(gradient, x, 0.9) if rule == "slide" else along(gradient, norm)
                x = x + size * move
                x = center + nearest(x - center, norm, epsilon)
            x = x.clamp(0.0, 1.0)
        found.append(x.view(image.shape))
    return torch.stack(found)


RULES = {
    **{("fgsm", norm): {} for norm in (1, 2, INF)},
    **{("pgd", norm): {"random_start": False} for norm in (1, 2, INF)},
    **{("frank_wolfe", norm): {} for norm in (1, 2, INF)},
    ("mi_fgsm", INF): {},
    ("slide", 1): {"q": 0.9},
}


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("rule", "norm"), RULES)
def test_the_rule_is_that_of_the_paper(rule, norm, targeted, digits):
    net, images, labels = digits[0], digits[1][:12], digits[2][:12]
    wanted, epsilon = (labels + 3) % 10 if targeted else labels, EPSILON[norm]
    options = {} if rule == "fgsm" else {"steps": 7, "best": False, **RULES[rule, norm]}
    if rule in ("pgd", "slide", "mi_fgsm"):
        options["step_size"] = PART * epsilon
    if rule in ("fgsm", "pgd", "frank_wolfe"):
        options["norm"] = norm
    steps, size = (1, epsilon) if rule == "fgsm" else (7, PART * epsilon)
    sign = -1.0 if targeted else 1.0
    expected = plainly(rule, net, images, wanted, epsilon, norm, steps, size, sign)
    exact = getattr(attacks, rule)(
        doubled(net), images.double(), wanted, epsilon, targeted=targeted, **options
    )
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-9)
    found = getattr(attacks, rule)(net, images, wanted, epsilon, targeted=targeted, **options)
    assert (found - expected).abs().max() < 2e-4


@NORMS
def test_one_perturbation_for_all_is_that_of_the_mean_loss(norm, digits):
    net, images, labels = doubled(digits[0]), digits[1], digits[2]
    shift = torch.zeros(1, 8, 8, dtype=torch.float64)
    for _ in range(7):
        at = shift.clone().requires_grad_()
        loss = cross_entropy(net((images.double() + at).clamp(0, 1)), labels)
        gradient = torch.autograd.grad(loss, at)[0].flatten()
        moved = shift.flatten() + EPSILON[norm] / 4 * along(gradient, norm)
        shift = nearest(moved, norm, EPSILON[norm]).view(1, 8, 8)
    options = {"norm": norm, "steps": 7, "step_size": EPSILON[norm] / 4, "best": False}
    found = attacks.universal(net, images.double(), labels, EPSILON[norm], **options)
    torch.testing.assert_close(found, shift, rtol=0, atol=1e-9)


# ------------------------------------------------------------------ other libraries

STEPS = 8


def ours(name, **options):
    def run(net, images, labels, epsilon):
        return getattr(attacks, name)(net, images, labels, epsilon, **options)

    return run


def of_rai_toolbox(kind, **options):
    def run(net, images, labels, epsilon):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gradient_ascent(
                model=net,
                data=images,
                target=labels,
                optimizer=kind,
                steps=STEPS,
                epsilon=epsilon,
                **options,
            )[0]

    return run


def of_foolbox(name, **options):
    def run(net, images, labels, epsilon):
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(foolbox.attacks, name)(**options)(
                model, images, labels, epsilons=epsilon
            )[1]

    return run


def of_torchattacks(name, **options):
    def run(net, images, labels, epsilon):
        return getattr(torchattacks, name)(net, eps=epsilon, **options)(images, labels)

    return run


LAST = {"steps": STEPS, "best": False}
FREE = {**LAST, "random_start": False, "low": -INF, "high": INF}
OTHERS = {"steps": STEPS, "random_start": False}
FIXED = {"random_start": False, **LAST}
SAME = {  # norm, the peer, ours
    "rai-toolbox, Linf": (
        INF,
        of_rai_toolbox(theirs.LinfProjectedOptim, lr=0.02),
        ours("pgd", step_size=0.02, **FREE),
    ),
    "rai-toolbox, L2": (
        2,
        of_rai_toolbox(theirs.L2ProjectedOptim, lr=0.15),
        ours("pgd", norm=2, step_size=0.15, **FREE),
    ),
    "foolbox, FGSM": (INF, of_foolbox("FGSM"), ours("fgsm")),
    "foolbox, FGM": (2, of_foolbox("L2FastGradientAttack"), ours("fgsm", norm=2)),
    "foolbox, Linf": (
        INF,
        of_foolbox("LinfPGD", abs_stepsize=0.02, **OTHERS),
        ours("pgd", step_size=0.02, **FIXED),
    ),
    "foolbox, L2": (
        2,
        of_foolbox("L2PGD", abs_stepsize=0.15, **OTHERS),
        ours("pgd", norm=2, step_size=0.15, **FIXED),
    ),
    "torchattacks, FGSM": (INF, of_torchattacks("FGSM"), ours("fgsm")),
    "torchattacks, Linf": (
        INF,
        of_torchattacks("PGD", alpha=0.02, **OTHERS),
        ours("pgd", step_size=0.02, **FIXED),
    ),
    "torchattacks, L2": (
        2,
        of_torchattacks("PGDL2", alpha=0.15, eps_for_division=1e-30, **OTHERS),
        ours("pgd", norm=2, step_size=0.15, **FIXED),
    ),
    "torchattacks, MI-FGSM": (
        INF,
        of_torchattacks("MIFGSM", alpha=0.02, steps=STEPS, decay=0.9),
        ours("mi_fgsm", step_size=0.02, decay=0.9, **LAST),
    ),
}
EQUAL_OR_BETTER = {
    "rai-toolbox, L1": (
        1,
        of_rai_toolbox(theirs.L1qFrankWolfe, q=0.9, dq=0.0, lr=2.0),
        ours("slide", q=0.9, steps=STEPS, low=-INF, high=INF),
    ),
    "foolbox, L1": (
        1,
        of_foolbox("L1PGD", abs_stepsize=0.5, **OTHERS),
        ours("pgd", norm=1, steps=STEPS, step_size=0.5, random_start=False),
    ),
    "foolbox, SLIDE": (
        1,
        of_foolbox("SparseL1DescentAttack", abs_stepsize=0.5, quantile=0.875, **OTHERS),
        ours("slide", q=0.875, steps=STEPS, step_size=0.5),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_images_are_those_of_another_library(name, digits):
    norm, peer, own = SAME[name]
    net, images, labels = digits
    images = 0.8 * images + 0.1 if "rai" in name else images  # theirs has no interval
    expected, found = (f(net, images, labels, EPSILON[norm]) for f in (peer, own))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EQUAL_OR_BETTER)
def test_as_many_images_are_fooled_as_by_another_library(name, digits):
    norm, peer, own = EQUAL_OR_BETTER[name]
    net, images, labels = digits
    theirs, found = (
        accuracy(net, f(net, images, labels, EPSILON[norm]), labels) for f in (peer, own)
    )
    assert found <= theirs < accuracy(net, images, labels)


@pytest.mark.parametrize("norm", [2, INF])
def test_as_many_images_are_fooled_as_by_the_adaptive_steps_of_another_library(norm, digits):
    data = load_digits()
    images = torch.tensor(data.images[:300], dtype=torch.float32)[:, None] / 16
    net, labels, epsilon = digits[0], torch.tensor(data.target[:300]), EPSILON[norm]

    def mean(attack):
        return sum(accuracy(net, attack(seed), labels) for seed in range(3)) / 3

    name = {2: "L2", INF: "Linf"}[norm]
    theirs = mean(
        lambda seed: of_torchattacks("APGD", norm=name, steps=30, n_restarts=1, seed=seed)(
            net, images, labels, epsilon
        )
    )
    found = mean(
        lambda seed: attacks.apgd(net, images, labels, epsilon, norm=norm, steps=30, seed=seed)
    )
    # what starts are drawn, tells
    assert found <= theirs + 0.01 < accuracy(net, images, labels)


# ------------------------------------------------------------------ what holds of all

ALL = {
    **{f"fgsm, {norm}": partial(attacks.fgsm, norm=norm) for norm in (1, 2, INF)},
    **{f"pgd, {norm}": partial(attacks.pgd, norm=norm, steps=9) for norm in (1, 2, INF)},
    **{
        f"frank_wolfe, {norm}": partial(attacks.frank_wolfe, norm=norm, steps=9)
        for norm in (1, 2, INF)
    },
    **{f"apgd, {norm}": partial(attacks.apgd, norm=norm, steps=9) for norm in (1, 2, INF)},
    "mi_fgsm, inf": partial(attacks.mi_fgsm, steps=9),
    "slide, 1": partial(attacks.slide, q=0.9, steps=9),
}
every = pytest.mark.parametrize("name", ALL)


def norm_of(name):
    return float(name.split(", ")[1])


@every
def test_images_stay_in_their_balls_and_in_the_interval_exactly(name, digits):
    net, images, labels = digits
    norm = norm_of(name)
    radii = EPSILON[norm] * torch.linspace(0.5, 1.5, len(images))  # one for each image
    before = images.clone()
    found = ALL[name](net, images, labels, radii)
    assert torch.equal(images, before) and not found.requires_grad
    assert (lengths(found, images, norm) <= radii.double() * (1 + 1e-15)).all()
    assert ((found >= 0) & (found <= 1)).all()
    few = ALL[name](net, images[:5], labels[:5], radii[:5], low=-0.5, high=1.5)
    assert (few < 0).any() and (few >= -0.5).all() and (few <= 1.5).all()


@every
def test_it_fools_the_network_away_from_labels_or_towards_them(name, digits):
    net, images, labels = digits
    epsilon = 1.5 * EPSILON[norm_of(name)]
    assert accuracy(net, images, labels) > 0.9
    assert accuracy(net, ALL[name](net, images, labels, epsilon), labels) < 0.7
    wanted = (labels + 1) % 10
    found = ALL[name](net, images, wanted, epsilon, targeted=True)
    before, after = (cross_entropy(net(x), wanted) for x in (images, found))
    assert after < 0.85 * before
    assert accuracy(net, found, wanted) > accuracy(net, images, wanted)


@every
def test_a_row_is_what_it_is_alone(name, digits):
    net, images, labels = doubled(digits[0]), digits[1].double(), digits[2]
    own = {"random_start": False} if "pgd" in name else {}
    attack = partial(ALL[name], net, epsilon=EPSILON[norm_of(name)], **own)
    together = attack(images=images[:3], labels=labels[:3])
    for i in range(3):
        one = slice(i, i + 1)
        torch.testing.assert_close(attack(images=images[one], labels=labels[one]), together[one])


@every
def test_under_vmap_each_radius_is_what_it_is_alone(name, digits):
    net, image, label = doubled(digits[0]), digits[1][:2].double(), digits[2][:2]
    radii = EPSILON[norm_of(name)] * torch.tensor([0.5, 1.0], dtype=torch.float64)
    together = torch.func.vmap(lambda epsilon: ALL[name](net, image, label, epsilon))(radii)
    for epsilon, found in zip(radii.tolist(), together, strict=True):
        alone = ALL[name](net, image, label, epsilon)
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-9)


@every
def test_the_model_is_in_eval_mode_and_put_back(name, digits):
    modes = []

    class Watch(nn.Module):
        def forward(self, x):
            modes.append(self.training)
            return x

    net = nn.Sequential(*digits[0][:2], nn.BatchNorm1d(32), Watch(), *digits[0][2:]).train()
    net[2].requires_grad_(False)
    net.zero_grad()
    images, labels = digits[1][:9], digits[2][:9]
    ALL[name](net, images, labels, 0.1)
    assert set(modes) == {False}
    assert net.training and net[1].weight.requires_grad and not net[2].weight.requires_grad
    assert net[2].num_batches_tracked == 0 and net[1].weight.grad is None
    with pytest.raises(ValueError, match="`epsilon` must satisfy"):
        ALL[name](net, images, labels, -1.0)
    assert net.training and net[1].weight.requires_grad
    net.eval(), digits[0].eval()


def test_the_options_of_the_solver_reach_it(digits):
    net, images, labels = digits
    seen = []
    several = partial(attacks.pgd, net, images, labels, 0.1, steps=3, loss=margin)
    first, more = several(), several(restarts=4)
    values = [margin(net(x), labels) for x in (first, more)]
    assert (values[0] <= values[1]).all() and (values[0] < values[1]).any()
    several(callback=lambda visit, x, losses: seen.append(losses))
    assert len(seen) == 4 and torch.equal(seen[0], margin(net(several(steps=0)), labels))
    assert torch.equal(first, several()) and not torch.equal(first, several(seed=1))
    fixed = several(init=lambda x, key: x, steps=0)
    assert torch.equal(fixed, images)


@pytest.mark.parametrize("targeted", [False, True])
def test_an_image_that_was_ever_fooled_is_returned_fooled(targeted, digits):
    net, images, labels = digits
    wanted = (labels + 1) % 10 if targeted else labels
    options = {"norm": 2, "steps": 15, "step_size": 0.5, "restarts": 2, "targeted": targeted}

    seen = []

    def look(visit, x, losses):
        seen.append((net(x).argmax(1) == wanted) == targeted)

    found = attacks.pgd(net, images, wanted, 0.5, callback=look, **options)
    ever, returned = torch.stack(seen).any(0), (net(found).argmax(1) == wanted) == targeted
    assert torch.equal(ever, returned) and ever.any() and not ever.all()


def test_a_wrong_label_counts_more_than_any_loss_of_a_right_one():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.rand(1000, 5, generator=generator).requires_grad_()
    labels = torch.randint(5, (1000,), generator=generator)
    values, plain = losses(logits, labels), cross_entropy(logits, labels, reduction="none")
    wrong = logits.argmax(1) != labels
    assert values[wrong].min() > values[~wrong].max()
    assert plain[wrong].min() < plain[~wrong].max()
    slopes = [torch.autograd.grad(f.sum(), logits)[0] for f in (values, plain)]
    assert torch.equal(*slopes)


def margin(logits, labels):
    """By how much another label leads."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -INF)
    return others.amax(1) - own[:, 0]


@NORMS
def test_adaptive_steps_fool_as_many_as_the_best_of_other_sizes(norm, digits):
    net, images, labels = digits
    for epsilon in (0.6 * EPSILON[norm], EPSILON[norm]):
        options = {"norm": norm, "steps": 40, "random_start": False}
        tuned = min(
            accuracy(
                net,
                attacks.pgd(net, images, labels, epsilon, step_size=size * epsilon, **options),
                labels,
            )
            for size in (0.02, 0.06, 0.2, 0.5, 1.0)
        )
        found = attacks.apgd(net, images, labels, epsilon, **options)
        assert accuracy(net, found, labels) <= tuned


def test_any_pipeline_is_an_attack(digits):
    net, images, labels = digits
    tx = rc.chain(rc.adam(0.05), rc.linf_ball(0.1, images), rc.box(0.0, 1.0))
    found = attacks.attack(net, images, labels, tx, 10)
    assert accuracy(net, found, labels) < accuracy(net, images, labels) - 0.3
    assert lengths(found, images, INF).max() <= 0.1


@NORMS
def test_one_perturbation_serves_images_that_it_has_not_seen(norm, digits):
    net, images, labels = digits
    shift = attacks.universal(net, images[:32], labels[:32], 2 * EPSILON[norm], norm=norm)
    assert shift.shape == (1, 8, 8) and lengths(shift, 0 * shift, norm).max() <= 2 * EPSILON[norm]
    others, own = images[32:], labels[32:]
    assert accuracy(net, (others + shift).clamp(0, 1), own) < accuracy(net, others, own) - 0.1


def test_adversarial_training_makes_a_network_harder_to_fool(digits):
    net, images, labels = digits
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trained = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    data = load_digits()
    more = torch.tensor(data.images[64:], dtype=torch.float32)[:, None] / 16
    more_labels = torch.tensor(data.target[64:])
    optim = torch.optim.Adam(trained.parameters(), lr=0.01)
    attack = partial(attacks.pgd, epsilon=0.1, steps=3)
    losses = [
        attacks.adversarial_step(trained, optim, more, more_labels, attack) for _ in range(100)
    ]
    assert losses[-1] < 0.5 * losses[0] and not losses[-1].requires_grad and trained.training
    robust, plain = (
        accuracy(f, attacks.pgd(f, images, labels, 0.1), labels) for f in (trained, net)
    )
    assert robust > plain + 0.2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"norm": 3}, ValueError, "`norm` must be one of 1, 2, inf  Got: 3"),
        ({"targeted": 1}, ValueError, "`targeted` must be one of False, True  Got: 1"),
        ({"steps": -1}, ValueError, "`steps` must satisfy 0 <= steps  Got: -1"),
        ({"epsilon": -0.1}, ValueError, "`epsilon` must satisfy 0.0 <= epsilon  Got: -0.1"),
        ({"low": 2.0}, ValueError, "`low` must satisfy low <= high"),
        ({"lr": 2.0}, TypeError, "unexpected keyword argument 'lr'"),
    ],
)
def test_bad_input_is_refused(options, error, message, digits):
    net, images, labels = digits
    with pytest.raises(error, match=message):
        attacks.pgd(net, images, labels, **{"epsilon": 0.1, **options})


@pytest.mark.parametrize(
    "name", ["fgsm", "pgd", "apgd", "mi_fgsm", "slide", "frank_wolfe", "universal"]
)
def test_images_and_labels_that_do_not_fit_are_refused(name, digits):
    """Images that were normalised, above all: they are not within 0 and 1."""
    net, images, labels = digits
    run = partial(getattr(attacks, name), net)
    with pytest.raises(ValueError, match=r"`images` must satisfy 0.0 <= .*Got: from -1 to 1"):
        run(2 * images - 1, labels, 0.1)
    near = run(2 * images - 1, labels, 0.1, low=-1.0)
    whole = name == "universal"
    assert (near if whole else near - (2 * images - 1)).abs().max() <= 0.1 + 1e-6
    with pytest.raises(TypeError, match="`images` must be a floating tensor"):
        run(images.numpy(), labels, 0.1)
    with pytest.raises(ValueError, match="`epsilon` must be a number, or one for each of the 64"):
        run(images, labels, torch.ones(3))
    for wrong in (labels[:5], labels.float(), torch.nn.functional.one_hot(labels)):
        with pytest.raises(ValueError, match="`labels` must be int64, one for each of the 64"):
            run(images, wrong, 0.1)
