"""Every method does what its paper says: steps on a quadratic, every draw given."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from oracle import OracleForms, oracle

from zopeft.engine import Direction
from zopeft.engine.vector import Elementwise, Held
from zopeft.methods import agzo, loren
from zopeft.noise import direction_seed, step_seed
from zopeft.optim.step import Step
from zopeft.optim.writing import write_all

# L(t) = sum(a t^2) / 2 + sum(b t): a projected gradient is exact, whatever eps.
PROBLEM = {
    "a": [1.0, 2.0, 4.0, 8.0],
    "b": [0.5, -1.0, 0.25, 2.0],
    "theta0": [1.0, -0.5, 0.25, 2.0],
    "eps": 0.125,
    "lr": 0.01,
}
Z1, Z2, Z3 = [1.0, -1.0, 0.5, 2.0], [0.5, 1.0, -1.0, -0.25], [-1.0, 0.25, 1.0, 0.5]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def seed(step, number=0):
    return direction_seed(step_seed(0, step), number)


def draws(*noises, step=0):
    """The noise of one step's directions."""
    return {seed(step, n): torch.tensor(z, dtype=torch.float64) for n, z in enumerate(noises)}


def steps(*noises):
    """The noise of the first direction of some steps."""
    return {seed(n): torch.tensor(z, dtype=torch.float64) for n, z in enumerate(noises)}


def runs(name, noises, count=1, **options):
    method, loss = oracle(name, PROBLEM, noises, **options)
    path = []
    for _ in range(count):
        method.step(loss)
        path.append(method.engine.theta.reshape(-1).tolist())
    return method, path


def close(found, expected):
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        **EXACT,
    )


ONE_STEP = {
    "mezo": ({}, [0.59875, -0.09875, 0.049375, 1.1975]),
    "zo_sign": ({"of": "estimate"}, [0.99, -0.49, 0.24, 1.99]),
    "zo_sign scalar": ({"of": "scalar"}, [0.99, -0.49, 0.245, 1.98]),
    "conservative": ({}, [0.59875, -0.09875, 0.049375, 1.1975]),
    "conservative stays": ({"lr": 0.5}, [1.0, -0.5, 0.25, 2.0]),
}


@pytest.mark.parametrize("case", ONE_STEP)
def test_one_step(case):
    options, expected = ONE_STEP[case]
    _, path = runs(case.split()[0], steps(Z1), **options)
    close(path[0], expected)


def test_momentum_in_both_conventions():
    _, path = runs("mezo_momentum", steps(Z1, Z2), 2, convention="heavy_ball")
    close(path[1], [0.257578125, 0.3022812500000001, -0.1710937500000001, 0.46527343749999983])
    _, path = runs("mezo_momentum", steps(Z1, Z2), 2, convention="ema")
    close(
        path[1],
        [0.41918585526315777, 0.11231907894736862, -0.06666118421052643, 0.8121175986842102],
    )


def test_adam():
    _, path = runs("mezo_adam", steps(Z1, Z2), 2)
    close(
        path[0], [0.9900000000024922, -0.4900000000024922, 0.24000000000498442, 1.990000000001246]
    )
    close(
        path[1], [0.9839643284384219, -0.4821309500387688, 0.23123739595888937, 1.983140400595617]
    )


def test_the_second_moment_of_the_first():
    _, path = runs("r_adazo", steps(Z1, Z2), 2)
    close(
        path[0], [0.6837723321895439, -0.18377233218954397, -0.06622737319185923, 1.683772258534766]
    )
    close(
        path[1], [0.4799878355803632, 0.04158615432470414, -0.30315656899041854, 1.470316517070948]
    )


def test_meazo():
    _, path = runs("meazo", steps(Z1, Z2), 2)
    close(
        path[0], [0.9900000000024922, -0.4900000000024922, 0.2450000000012461, 1.9800000000049844]
    )
    close(
        path[1], [0.991233559437113, -0.48753288113325066, 0.24253288113200452, 1.979383220287674]
    )


@pytest.mark.parametrize("update", ["new", "old"])
def test_hizoo(update):
    method, loss = oracle("hizoo", PROBLEM, steps(Z1), smooth=0.1, update=update)
    hessian = method.kept["hessian"][0]
    hessian.copy_(torch.tensor([1.0, 4.0, 1.0, 16.0]))
    method.step(loss)
    close(hessian, [1.125, 4.5, 0.95625, 28.8])
    close(
        method.engine.theta,
        {
            "old": [0.87875, -0.439375, 0.18937500000000002, 1.939375],
            "new": [
                0.8856844037081748,
                -0.4428422018540874,
                0.18800366340150423,
                1.9548127929546917,
            ],
        }[update],
    )


def test_adamu():
    method, loss = oracle("zo_adamu", PROBLEM, draws(Z1, Z2), warmup=0, alpha=0.25)
    method.kept["history"][0].copy_(torch.tensor([0.5, 0.0, -0.5, 1.0]))
    method.step(loss)
    close(
        method.kept["history"][0],
        [0.5433012701892219, -0.3633974596215562, 0.08839745962155618, 0.978349364905389],
    )
    close(
        method.engine.theta,
        [0.8874307075494584, -0.41890069623882104, 0.23747426165516583, 1.7602215112153963],
    )


def test_svrg_replays_its_anchor():
    method, path = runs("mezo_svrg", steps(Z1, Z2), 2, inner=0.1)
    close(path[0], [0.59875, -0.09875, 0.049375, 1.1975])
    close(path[1], [0.5571203125, -0.061634375, 0.03232187499999999, 1.11800234375])
    assert method.forward_passes == 6 and method.kept["written"]


def test_sparse_mask():
    _, path = runs("sparse_mezo", steps(Z1), sparsity=0.5)
    close(path[0], [1.0, -0.47375, 0.236875, 2.0])


def test_kernel_of_a_random_radius(monkeypatch):
    monkeypatch.setattr("random.Random.uniform", lambda *_: 0.5)
    _, path = runs("kerzoo", steps(Z1))
    close(
        path[0],
        [-0.2225585937500001, 0.7225585937500001, -0.36127929687500004, -0.4451171875000002],
    )


def test_cone():
    method, loss = oracle("conmezo", PROBLEM, steps(Z1))
    method.kept["mean"][0].copy_(torch.tensor([1.5, 3.0, -3.0, -0.75]))
    method.step(loss)
    # The mean's square is noted in fp32; this one is exact in it.
    close(
        method.engine.theta,
        [0.58418801050399, -0.2446296468998072, 0.17579536891517594, 1.302077384671161],
    )
    close(
        method.kept["mean"][0],
        [1.9008119894960098, 2.714629646899807, -2.895795368915176, -0.04457738467116101],
    )


def test_kalman_filter():
    method, path = runs("bszo", draws(Z1, Z2))
    close(
        path[0], [0.7618844434881289, -0.21254850598812886, 0.08982894049406442, 1.4826556057262579]
    )
    close(method.kept["noise"], 1.9817932128906253)


def test_pools():
    _, path = runs("mezo_guided", draws(Z1, Z2), pool=2)
    close(path[0], [0.764375, 0.4425, -0.45687500000000003, 0.9396875])
    _, path = runs("mezo_greedy", draws(Z1, Z2, Z3), pool=3)
    close(path[0], [1.035, -0.43, 0.18, 1.9825])


def test_learned_mean_direction():
    method, loss = oracle("ldsd", PROBLEM, draws(Z1, Z2), candidates=2)
    method.kept["mean"][0].copy_(torch.tensor([0.1, 0.0, 0.0, -0.1], dtype=torch.float64))
    method.step(loss)
    close(method.engine.theta, [1.0519, -0.4134999999999999, 0.16349999999999992, 1.969725])
    close(
        method.kept["mean"][0],
        [0.039082031249999934, 0.24367187499999987, -0.18275390624999985, -0.374130859375],
    )


def test_aligned_direction():
    """a is given: along it the fp32 products are exact."""
    method, _ = oracle("dap", PROBLEM, steps(Z1))
    rough = Held([torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)])
    step = Step(method, 0, seed(0), 0.125)
    found = method.engine.values(method.aligned(step, step.direction(), rough, 1.0))
    close(found, [0.20710678118654746, -1.0, 0.5, 1.2071067811865475])


def test_fzoo_is_the_mean_over_the_spread():
    _, path = runs("fzoo", draws(Z1, Z2), queries=2)
    losses = {"here": 21.9375, "one": 27.234375, "two": 21.115234375}
    spread = abs(losses["one"] - losses["two"]) / 2
    terms = [
        (losses[key] - losses["here"]) / spread * torch.tensor(z, dtype=torch.float64)
        for key, z in (("one", Z1), ("two", Z2))
    ]
    close(path[0], torch.tensor(PROBLEM["theta0"], dtype=torch.float64) - 0.01 / 2 * sum(terms))


def test_a_direction_for_each_example(monkeypatch):
    """Pattern 2 of the vector over its pattern 1, for here the first is ones."""
    first = torch.tensor([1.0, -1.0, -0.5, -2.0], dtype=torch.float64)
    signs = matrix([1.0, 1.0], [1.0, -1.0]), matrix([1.0, 1.0], [-1.0, 1.0])
    monkeypatch.setattr("zopeft.engine.flips.Signs.of", lambda *_: signs)
    method, plain = oracle("grzo", PROBLEM, {seed(0): first}, shape=(2, 2), groups=2)
    a, b = (torch.tensor(PROBLEM[key], dtype=torch.float64) for key in ("a", "b"))

    class Examples:
        def __call__(self):
            return plain()

        def grouped(self, count, only):
            t = method.engine.shown.reshape(-1)
            parts = (plain(), (a / 2 * t * t).sum() / 2 - (b * t).sum())
            return parts[only]

    method.probing.engine, method.probing.groups_together = method.engine, False
    method.engine.settle = lambda: False
    method.step(Examples())
    close(
        method.engine.theta.reshape(-1),
        [1.0399999999280898, -0.5195505617626057, 0.24022471911869714, 1.9200000001438202],
    )
    assert method.forward_passes == 2


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


EMPTY = torch.empty(0, dtype=torch.float64)


def shaped(name, drawn, kept, keep=None, count=1, **options):
    def forms(shapes, blocks):
        assert shapes
        return OracleForms(shapes, blocks, drawn, {None: kept})

    method, loss = oracle(name, PROBLEM, {}, shape=(2, 2), forms=forms, **options)
    for _ in range(count):
        method.step(loss)
    return method, method.engine.theta.reshape(-1)


def test_lozo_and_its_momentum():
    left, right = matrix([1.0], [-0.5]), matrix([0.5, 2.0])
    _, theta = shaped("lozo", {seed(0): (left, EMPTY)}, right, r=1)
    close(theta, [1.1078125, -0.06874999999999998, 0.19609375, 1.784375])
    method, theta = shaped("lozo_m", {seed(0): (left, EMPTY)}, right, r=1)
    close(method.kept["momentum"][0], [[-2.15625], [1.078125]])
    close(theta, [1.01078125, -0.456875, 0.244609375, 1.9784375])


def test_lozo_m_carries_its_momentum_over():
    """N V_old' V_new / I at the renewal, before the step's own part."""
    left, old, new = matrix([1.0], [-0.5]), matrix([0.5, 2.0]), matrix([1.0, -1.0])
    drawn = {seed(0): (left, EMPTY), seed(1): (0.0 * left, EMPTY)}

    def forms(shapes, blocks):
        return OracleForms(shapes, blocks, drawn, {step_seed(0, 0): old, step_seed(0, 1): new})

    options = {"r": 1, "nu": 1}
    method, loss = oracle("lozo_m", PROBLEM, {}, shape=(2, 2), forms=forms, **options)
    method.step(loss)
    before = method.kept["momentum"][0].clone()
    method.step(loss)
    assert float(before.abs().sum()) > 1.0
    close(
        method.kept["momentum"][0],
        0.9 * torch.tensor([[1.6171875], [-0.80859375]], dtype=torch.float64),
    )


def test_tezo_and_its_adam():
    """The paper has no root of r: the coordinates are as many times as large here."""
    root = math.sqrt(2.0)
    kept = (matrix([1.0, 0.0], [0.5, 1.0]) / root, matrix([1.0, 0.0], [-1.0, 1.0]))
    drawn = {seed(0): (root * torch.tensor([0.5, -2.0], dtype=torch.float64), EMPTY)}
    _, theta = shaped("tezo", drawn, kept, r=2)
    close(theta, [1.1621875, -0.5, 0.97984375, 1.3512499999999998])
    method, theta = shaped("tezo_adam", drawn, kept, r=2)
    close(method.kept["first"][0] / root, [-1.6218750000000002, 6.487500000000001])
    close(method.kept["second"][0] / 2, [2.630478515625, 42.08765625])
    close(theta, [1.009999999980992, -0.5, 0.261163126111723, 1.990000000001188])


LEFT = matrix([0.955336489125606], [0.29552020666133955])
RIGHT = matrix([0.5403023058681398, 0.8414709848078965])


def test_subzero_and_its_adam():
    """The code's factor is 2 for this matrix: Z is half as large here."""
    _, theta = shaped(
        "subzero", {seed(0): (torch.tensor([0.75]).double(), EMPTY)}, (LEFT, RIGHT), r=1
    )
    expected = [0.9553778062831951, -0.5694949491855994, 0.23619673794628948, 1.9785026930521152]
    torch.testing.assert_close(theta, torch.tensor(expected).double(), rtol=0, atol=1e-7)
    drawn = {seed(0, n): (torch.tensor([z / 2]).double(), EMPTY) for n, z in enumerate((1.5, -0.5))}
    method, theta = shaped("subzero_plus", drawn, (LEFT, RIGHT), r=1, queries=2)
    expected = [0.9948382949307336, -0.5080388793472659, 0.24840329751228216, 1.9975132832116524]
    torch.testing.assert_close(theta, torch.tensor(expected).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(
        method.kept["first"][0] / 0.1 * 2,
        torch.tensor([[5.021623789681726]]).double(),
        rtol=1e-6,
        atol=0,
    )


def test_muon():
    rotation = matrix([0.6], [0.8])
    drawn = {
        seed(0, n): (EMPTY, torch.tensor(psi).double() / math.sqrt(2.0))
        for n, psi in enumerate(([1.0, -1.0], [0.5, 2.0]))
    }
    _, theta = shaped("zo_muon", drawn, rotation, r=1, queries=2, exact=True)
    close(theta, [0.9996783674759062, -0.5059913731747776, 0.24957115663454163, 1.9920115024336298])


def test_forward_gradient():
    method, path = runs("forward_gradient", steps(Z1))
    close(method.last_record.projected_grads, [40.125])
    close(path[0], [0.59875, -0.09875, 0.049375, 1.1975])


def test_activation_guided_directions(monkeypatch):
    """A is noted in fp32."""
    basis = torch.tensor([[0.8944271909999159], [0.4472135954999579]])
    monkeypatch.setattr(agzo, "linear_layers", lambda blocks: [0])
    monkeypatch.setattr(agzo.Activations, "basis", lambda self, index: basis.numpy())
    method, loss = oracle("agzo", PROBLEM, {}, shape=(2, 2))
    left = torch.tensor([1.0, -2.0], dtype=torch.float64)
    method.engine.kernels = SimpleNamespace(draw=lambda *_: [left])
    method.step(loss)
    expected = [1.1485960533147512, -0.4257019733426244, -0.04719210662950257, 1.8514039466852488]
    torch.testing.assert_close(
        method.engine.theta.reshape(-1), torch.tensor(expected).double(), rtol=0, atol=1e-6
    )
    assert method.last_record.projected_grads[0] == pytest.approx(-16.61354381999834, rel=1e-6)


def test_noise_shaped_by_a_curvature_of_rows():
    noise = Held([matrix([1.0, 2.0], [-2.0, 0.5])])
    a, rho = torch.tensor([0.3, -0.4], dtype=torch.float64), 0.1
    method, _ = oracle("loren", PROBLEM, {}, shape=(2, 2))
    found = method.engine.values(loren.shaped(noise, {0: a}, rho))
    close(found[0], [4.045459150595187, 5.146979999767682])
    inverse = torch.linalg.inv(rho * torch.eye(2).double() + torch.outer(a, a))
    values, vectors = torch.linalg.eigh(inverse)
    close(found, noise.tensors[0] @ (vectors * values.sqrt()) @ vectors.t())


def test_a_step_of_shaped_noise_and_its_curvature():
    """Leave-one-out slopes, momentum, and the natural-evolution step of a, written out."""
    zs = [matrix([1.0, -1.0], [0.5, 2.0]), matrix([0.5, 1.0], [-1.0, -0.25])]
    noises = {seed(0, n): z for n, z in enumerate(zs)}
    options = {"queries": 2, "rho": 0.5, "lr_curvature": 0.2}
    method, loss = oracle("loren", PROBLEM, noises, shape=(2, 2), **options)
    a = torch.tensor([0.5, -0.25], dtype=torch.float64)
    method.kept["curvature"][0].copy_(a)
    theta = method.engine.theta.clone()
    root = method.engine.values
    us = [root(loren.shaped(Held([z]), {0: a}, 0.5)) for z in zs]
    pa, pb = (torch.tensor(PROBLEM[key], dtype=torch.float64) for key in ("a", "b"))

    def at(point):
        t = point.reshape(-1)
        return float((pa * t * t).sum() / 2 + (pb * t).sum())

    losses = [at(theta + 0.125 * u) for u in us]
    pulls = [(one - sum(losses) / 2) / 0.125 for one in losses]
    method.step(loss)
    momentum = 0.1 * sum(pull * u for pull, u in zip(pulls, us, strict=True))
    close(method.kept["momentum"][0], momentum)
    close(method.engine.theta, theta - 0.01 * momentum)
    inverse = torch.linalg.inv(0.5 * torch.eye(2).double() + torch.outer(a, a))
    slope = sum(
        pull * (inverse @ a - (u * (u @ a).unsqueeze(1)).mean(0))
        for pull, u in zip(pulls, us, strict=True)
    )
    close(method.kept["curvature"][0], a - 0.2 * 0.125 * slope)


def test_the_mixture_of_adamu_is_annealed_by_a_cosine():
    method, _ = oracle("zo_adamu", PROBLEM, {}, warmup=2, anneal=4)
    found = [method._annealed(number) for number in range(8)]
    half = [0.5 * (1.0 - math.cos(math.pi * part / 4)) for part in range(5)]
    close(found, [0.0, 0.0, *half, 1.0])
    close(half[1:4], [0.14644660940672627, 0.5, 0.8535533905932737])
    method, _ = oracle("zo_adamu", PROBLEM, {}, warmup=2)
    close([method._annealed(number) for number in range(4)], [0.0, 0.0, 1.0, 1.0])


def test_lezo_writes_what_it_probes():
    """A mask in place of the layers: the numbers of the paper's vector."""
    mask = Held([torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)])
    method, loss = oracle("mezo", PROBLEM, steps(Z1))
    u = Elementwise(lambda _, z, m: z * m, (Direction(seed(0)), mask))
    plus, minus = (method.engine.run([u.at(side)], loss)[0][0] for side in (0.125, -0.125))
    gradient = float(plus - minus) / 0.25
    close(gradient, 3.5)
    step = Step(method, 0, seed(0), 0.125)
    one = torch.ones(1, dtype=torch.float64)
    write_all(method.engine, method.kept, [step.descend(u, gradient)], 0, 0.01 * one, one)
    close(method.engine.theta, [0.965, -0.46499999999999997, 0.25, 2.0])
