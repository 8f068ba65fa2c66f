"""SOAP takes the steps of the authors' algorithm in any basis, goes on as if never stopped, and refuses the rest."""

import copy
import io
import math
from collections import defaultdict
from itertools import product
from types import SimpleNamespace

import pytest
import pytorch_optimizer.optimizer.soap
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_optimizer import SOAP as PeerSOAP
from torch import nn

from dcae_lib import SOAP
from dcae_lib.soap import project, restore

patient = settings(deadline=None, max_examples=25)          # a busy core is no failure

# Square, convolution, transposed convolution, conv1d and vectors: no dimension above the product of the others, where
# the first factor has a null space, whose basis is arbitrary. Two each, since weights of one shape share their calls.
SHAPES = [(8, 8), (8, 8), (12, 4, 3, 3), (12, 4, 3, 3), (4, 12, 2, 2), (4, 12, 2, 2), (6, 10, 5), (10,), (10,)]


def noise(shapes, steps, seed=0, dtype=torch.float64):
    """Gaussian numbers: for each step a list with one tensor per shape."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes] for _ in range(steps)]


def new(shapes, optimizer=SOAP, dtype=torch.float64, lr=2e-3, seed=99, **changes):
    """An optimizer and its weights, the same each time."""
    return optimizer([nn.Parameter(w) for w in noise(shapes, 1, seed, dtype)[0]], lr=lr, **changes)


def weights(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def play(optimizer, steps):
    """Take a step for each list of gradients, None among them for a weight without; the weights after each."""
    seen = []
    for gradients in steps:
        for p, g in zip(weights(optimizer), gradients):
            p.grad = None if g is None else g.clone()
        optimizer.step()
        seen.append([p.detach().clone() for p in weights(optimizer)])
    return seen


def distance(one, other):
    """The largest absolute difference between two results of `play`."""
    return max((a - b).abs().max().item() for row, line in zip(one, other) for a, b in zip(row, line))


def snapshot(optimizer):
    return copy.deepcopy((weights(optimizer), optimizer.state_dict()))


def same(one, other):
    """Two snapshots, bit for bit."""
    (ps, a), (qs, b) = one, other
    numbers, others = ({(k, name): x for k, own in c["state"].items() for name, x in own.items()} for c in (a, b))
    return (
        all(map(torch.equal, ps, qs)) and a["param_groups"] == b["param_groups"] and numbers.keys() == others.keys()
        and all(torch.equal(x, others[key]) for key, x in numbers.items())
    )


def bases(optimizer, p):
    """The Q and the GG of a weight, by dimension; None where it has none."""
    return [[optimizer.state[p].get(f"{name}{k}") for k in range(p.ndim)] for name in ("Q", "GG")]


def times(x, matrices):
    """x with its dimension k multiplied by the matrix k, from the left: the plain definition of a change of basis."""
    for k, matrix in enumerate(matrices):
        if matrix is not None:
            x = torch.tensordot(matrix, x, ([1], [k])).movedim(0, k)
    return x


def turns(shape, seed=0):
    """A random rotation or reflection for each dimension."""
    return [torch.linalg.qr(x).Q for x in noise([(d, d) for d in shape], 1, seed)[0]]


def in_eigenbasis(GG, Q):
    """Qᵀ GG Q over its largest entry: its diagonal, and the largest number off it."""
    turned = Q.mT @ GG @ Q
    turned = turned / turned.abs().max()
    return turned.diagonal(), (turned - turned.diagonal().diag()).abs().max()


# ---- the algorithm, by pytorch_optimizer


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-7), (torch.float32, 1e-4)])
def test_on_fixed_gradients_every_step_is_that_of_pytorch_optimizer(dtype, limit, weight_decay):
    gradients = noise(SHAPES, 60, dtype=dtype)
    mine, theirs = (
        play(new(SHAPES, optimizer, dtype, weight_decay=weight_decay, precondition_frequency=10), gradients)
        for optimizer in (SOAP, PeerSOAP)
    )
    assert distance(mine, theirs) < limit
    assert distance(mine, mine[:1] * 60) > 0.02             # they move


IN_FLOAT64 = SimpleNamespace(**vars(torch) | dict(float32=torch.float64))


class ExactPeerSOAP(PeerSOAP):
    """The oracle with its QR in the precision of the weights; as published it is in float32."""

    def get_orthogonal_matrix_qr(self, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pytorch_optimizer.optimizer.soap, "torch", IN_FLOAT64)
            return super().get_orthogonal_matrix_qr(*arguments)


@pytest.mark.parametrize("changes", [
    {}, dict(precondition_frequency=1), dict(precondition_frequency=3), dict(weight_decay=0.3), dict(betas=(0.0, 0.0)),
    dict(betas=(0.9, 0.99)), dict(shampoo_beta=0.7), dict(shampoo_beta=0.0), dict(eps=0.1), dict(lr=0.0),
    *(dict(max_precondition_dim=largest) for largest in (1, 2, 4, 8)),
], ids=str)
def test_on_fixed_gradients_every_step_is_that_of_the_oracle_to_12_digits_whatever_the_settings(changes):
    gradients = noise(SHAPES, 40)
    mine, theirs = (play(new(SHAPES, optimizer, **changes), gradients) for optimizer in (SOAP, ExactPeerSOAP))
    assert distance(mine, theirs) < 1e-12


@patient
@given(data=st.data(), frequency=st.integers(1, 6), seed=st.integers(0, 999))
def test_weights_of_any_shape_take_the_steps_of_the_oracle(data, frequency, seed):
    shape = st.lists(st.integers(1, 6), max_size=5).map(tuple)
    full = shape.filter(lambda s: len(s) < 2 or all(d * d <= math.prod(s) for d in s))
    shapes = data.draw(st.lists(full, min_size=1, max_size=3)) * 2
    changes = dict(precondition_frequency=frequency, max_precondition_dim=data.draw(st.sampled_from([3, 9])))
    gradients = noise(shapes, 2 * frequency + 2, seed)
    mine, theirs = (play(new(shapes, optimizer, **changes), gradients) for optimizer in (SOAP, ExactPeerSOAP))
    assert distance(mine, theirs) < 1e-8                    # a first factor can be close to singular


@pytest.mark.parametrize("name, value", [
    ("lr", 0.05), ("betas", (0.5, 0.8)), ("shampoo_beta", 0.5), ("eps", 0.3), ("weight_decay", 0.9),
    ("precondition_frequency", 4),
])
def test_a_setting_that_is_changed_counts_from_the_next_step_on(name, value):
    gradients = noise(SHAPES, 40)
    mine, theirs = new(SHAPES), new(SHAPES, ExactPeerSOAP)
    assert distance(play(mine, gradients[:13]), play(theirs, gradients[:13])) < 1e-12
    unchanged = copy.deepcopy(mine)
    mine.param_groups[0][name] = theirs.param_groups[0][name] = value
    for state in theirs.state.values():                     # which keeps some settings there
        state["shampoo_beta"] = mine.param_groups[0]["shampoo_beta"] or mine.param_groups[0]["betas"][1]
        state["precondition_frequency"] = mine.param_groups[0]["precondition_frequency"]
    after = play(mine, gradients[13:])
    assert distance(after, play(theirs, gradients[13:])) < 1e-12
    assert distance(after, play(unchanged, gradients[13:])) > 1e-4


def test_the_largest_dimension_with_a_factor_is_read_at_the_first_gradient_of_a_weight():
    optimizer = new([(8, 8), (8, 8)])
    play(optimizer, [[g, None] for g, _ in noise([(8, 8)] * 2, 3)])
    optimizer.param_groups[0]["max_precondition_dim"] = 7
    play(optimizer, noise([(8, 8)] * 2, 3))
    first, second = (set(optimizer.state[p]) for p in weights(optimizer))
    assert first == {"step", "exp_avg", "exp_avg_sq", "GG0", "GG1", "Q0", "Q1"}
    assert second == {"step", "exp_avg", "exp_avg_sq"}


# ---- any basis


@pytest.mark.parametrize("frequency", [1, 10])
@pytest.mark.parametrize("shape", [(7, 7), (6, 5, 3, 3)])
@pytest.mark.parametrize("optimizer, holds", [(SOAP, True), (torch.optim.AdamW, False)])
def test_in_turned_coordinates_its_path_is_the_turned_path_and_that_of_adamw_is_not(optimizer, holds, shape, frequency):
    rotations, ((start, stretch),) = turns(shape), noise([shape] * 2, 1, seed=1)
    targets = noise([shape], 40, seed=2)                    # one for each step, as batches are

    def trajectory(there, back):
        w, seen = nn.Parameter(there(start).clone()), []
        running = optimizer([w], lr=2e-3, weight_decay=0.1, **(dict(precondition_frequency=frequency) if holds else {}))
        for (target,) in targets:
            running.zero_grad()
            (stretch.exp() * (back(w) - target) ** 2).sum().backward()
            running.step()
            seen.append([back(w).detach().clone()])
        return seen

    plain = trajectory(lambda x: x, lambda x: x)
    turned = trajectory(lambda x: times(x, rotations), lambda x: times(x, [r.mT for r in rotations]))
    assert distance(plain, turned) < 1e-12 if holds else distance(plain, turned) > 1e-2


# ---- no basis


@pytest.mark.parametrize("eps", [1e-30, 1e-8, 0.1])
def test_without_factors_it_is_adam_from_the_second_gradient_on(eps):
    gradients = noise(SHAPES, 40)
    mine, adam = (new(SHAPES, optimizer, betas=(0.9, 0.99)) for optimizer in (SOAP, torch.optim.Adam))
    mine.param_groups[0].update(max_precondition_dim=1, weight_decay=0.0, eps=eps)
    play(mine, gradients[:1])
    for step, row in enumerate(gradients[1:], 1):
        adam.param_groups[0]["eps"] = eps / math.sqrt(1 - 0.99**step)       # ours is corrected along with the root
        assert distance(play(mine, [row]), play(adam, [row])) < 1e-14


def test_without_factors_weight_decay_is_that_of_adamw_that_comes_after_the_step():
    gradients, kept = noise(SHAPES, 40), 1 - 2e-3 * 0.5
    mine = new(SHAPES, weight_decay=0.5, max_precondition_dim=1, eps=1e-30)
    adamw = new(SHAPES, torch.optim.AdamW, weight_decay=0.5, betas=(0.95, 0.95), eps=1e-30)
    with torch.no_grad():
        torch._foreach_div_(weights(adamw), kept)           # AdamW decays first: so its first decay cancels
    theirs = play(adamw, gradients[1:])
    assert distance(play(mine, gradients)[1:], [[kept * w for w in row] for row in theirs]) < 1e-14


# ---- bases and moments


@patient
@given(data=st.data(), n=st.integers(1, 3), seed=st.integers(0, 999), beta=st.floats(0, 0.99))
def test_project_multiplies_every_dimension_by_its_basis_and_restore_undoes_it(data, n, seed, beta):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=5))
    with_factor = data.draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
    xs = [noise([shape], 1, seed + k)[0][0] for k in range(n)]
    Qs = [[q if has else None for q, has in zip(turns(shape, seed + 10 + k), with_factor)] for k in range(n)]
    GGs = [[q @ q.mT + q if q is not None else None for q in one] for one in Qs]        # anything
    Q, GG = ([None if m[0] is None else torch.stack(m) for m in zip(*one)] for one in (Qs, GGs))

    turned = project(torch.stack(xs), Q, GG, beta)
    assert turned.shape == (n, *shape[2:], *shape[:2])
    back = turned.movedim((-2, -1), (1, 2))
    for k, x in enumerate(xs):
        torch.testing.assert_close(back[k], times(x, [None if q is None else q.mT for q in Qs[k]]), rtol=0, atol=1e-12)
        for d in range(len(shape)):
            if GG[d] is not None:
                g = x.movedim(d, 0).flatten(1)
                torch.testing.assert_close(GG[d][k], beta * GGs[k][d] + (1 - beta) * g @ g.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(restore(turned, Q), torch.stack(xs), rtol=0, atol=1e-12)
    torch.testing.assert_close(project(torch.stack(xs), Q), turned, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 8), (9, 4, 3, 3), (12, 3), (3, 12, 2, 2)])
def test_after_the_first_gradient_a_basis_is_the_eigenvectors_of_its_factor_the_largest_first(shape):
    optimizer = new([shape])
    ((g,),) = gradients = noise([shape], 1)
    play(optimizer, gradients)
    for k, (Q, GG) in enumerate(zip(*bases(optimizer, weights(optimizer)[0]))):
        unfolded = g.movedim(k, 0).flatten(1)
        torch.testing.assert_close(GG, 0.05 * unfolded @ unfolded.mT, rtol=1e-12, atol=1e-12)
        diagonal, off = in_eigenbasis(GG, Q)
        assert off < 1e-14 and (diagonal.diff() < 1e-14).all()
        torch.testing.assert_close(Q.mT @ Q, torch.eye(len(Q), dtype=Q.dtype), rtol=0, atol=1e-13)


def test_refresh_by_refresh_a_basis_comes_closer_to_the_eigenvectors():
    optimizer, shape = new([(6, 5, 3)], precondition_frequency=1000), (6, 5, 3)
    wide = [r @ torch.arange(1.0, d + 1, dtype=r.dtype).diag() for r, d in zip(turns(shape), shape)]
    play(optimizer, [[times(g, wide)] for (g,) in noise([shape], 30)])
    (p,) = weights(optimizer)                               # its bases are those of the first gradient
    optimizer.param_groups[0]["precondition_frequency"] = 1
    apart = []
    for _ in range(100):
        apart.append(max(in_eigenbasis(GG, Q)[1].item() for Q, GG in zip(*bases(optimizer, p))))
        play(optimizer, [[torch.zeros(shape, dtype=p.dtype)]])                  # the eigenvectors of GG stay
    assert apart[0] > 0.05
    assert all(later < earlier for earlier, later in zip(apart[::10], apart[10:60:10]))
    assert apart[-1] < 1e-9


@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_bases_are_orthonormal_after_hundreds_of_refreshes(dtype, limit):
    shapes = [(8, 8), (12, 4, 3, 3), (16, 3, 1, 1)]
    optimizer = new(shapes, dtype=dtype, precondition_frequency=1)
    play(optimizer, noise(shapes, 300, dtype=dtype))
    for p in weights(optimizer):
        for Q in bases(optimizer, p)[0]:
            if Q is not None:
                assert (Q.mT @ Q - torch.eye(len(Q))).abs().max() < limit


@pytest.mark.parametrize("frequency", [1, 3])
def test_in_the_coordinates_of_the_weight_the_first_moment_is_the_mean_of_the_gradients_across_all_refreshes(frequency):
    optimizer = new(SHAPES, betas=(0.9, 0.95), precondition_frequency=frequency)
    means = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    for step, gradients in enumerate(noise(SHAPES, 20)):
        play(optimizer, [gradients])
        for p, mean, g in zip(weights(optimizer), means, gradients):
            mean.lerp_(g, 0.1 if step else 0.0)             # the first gradient makes the bases only
            Q = [None if q is None else q[None] for q in bases(optimizer, p)[0]]
            torch.testing.assert_close(restore(optimizer.state[p]["exp_avg"][None], Q)[0], mean, rtol=0, atol=1e-13)


def started(settings_by_group, shapes, dtype=torch.float64):
    """An optimizer with a group for each pair of settings and of places in the list of shapes."""
    values = noise(shapes, 1, 99, dtype)[0]
    return SOAP([dict(own, params=[nn.Parameter(values[k]) for k in places]) for own, places in settings_by_group])


@patient
@given(
    steps=st.lists(st.lists(st.sampled_from([1, 1, 0, None]), min_size=5, max_size=5), min_size=1, max_size=14),
    frequency=st.integers(1, 4), split=st.integers(1, 4),
)
def test_a_weight_takes_the_steps_it_would_take_alone_whatever_the_others_do(steps, frequency, split):
    shapes, sizes = [(4, 4), (4, 4), (4, 4), (5, 4, 3), (4,)], [1, 1e-5, 1, 1e5, 1]
    gradients = [                                           # some all zero, some None
        [None if scale is None else scale * size * g for g, scale, size in zip(row, scales, sizes)]
        for row, scales in zip(noise(shapes, len(steps)), steps)
    ]
    first, second = dict(weight_decay=0.1, precondition_frequency=frequency), dict(lr=0.01, betas=(0.8, 0.9), eps=1e-3)
    joint = play(started([(first, range(split)), (second, range(split, 5))], shapes), gradients)
    for k in range(5):
        alone = started([(first if k < split else second, [k])], shapes)
        for row, line in zip(joint, gradients):
            if line[k] is not None:                         # else it has not moved, decayed or aged
                play(alone, [[line[k]]])
            torch.testing.assert_close(row[k], weights(alone)[0].detach(), rtol=0, atol=1e-10)


def test_weights_of_one_shape_and_age_may_differ_in_their_factors():
    shapes, gradients = [(8, 8), (8, 8)], noise([(8, 8), (8, 8)], 20)
    optimizer, whole, small = new(shapes), new(shapes), new(shapes, max_precondition_dim=7)
    play(optimizer, [[gradients[0][0], None]]), play(whole, [[gradients[0][0], None]])
    optimizer.param_groups[0]["max_precondition_dim"] = 7
    play(optimizer, [[None, gradients[0][1]]]), play(small, [[None, gradients[0][1]]])
    joint, left, right = (play(one, gradients[1:]) for one in (optimizer, whole, small))
    assert distance(joint, [[a[0], b[1]] for a, b in zip(left, right)]) < 1e-12


# ---- factors with a null space


DEFICIENT = [(16, 3, 1, 1), (3, 16, 1, 1), (3, 16, 2, 2), (3, 16, 2, 2)]    # 1×1, and transposed 16 → 3


@pytest.mark.parametrize("optimizer, holds", [(SOAP, True), (PeerSOAP, False)])
def test_noise_of_a_millionth_on_the_gradients_does_not_move_weights_whose_first_factor_is_singular(optimizer, holds):
    gradients = noise(DEFICIENT, 60, dtype=torch.float32)
    near = [[g + 1e-6 * e for g, e in zip(*both)] for both in zip(gradients, noise(DEFICIENT, 60, 1, torch.float32))]
    one, other = (play(new(DEFICIENT, optimizer, torch.float32), x) for x in (gradients, near))
    if holds:
        assert distance(one, other) < 1e-5
    else:
        assert distance(one[:2], other[:2]) > 1e-3          # as published: half a step apart at once


def test_singular_factors_give_the_same_finite_weights_each_time_bit_for_bit():
    gradients = noise(DEFICIENT, 30, dtype=torch.float32)
    one, other = (play(new(DEFICIENT, dtype=torch.float32, precondition_frequency=3), gradients) for _ in range(2))
    assert distance(one, other) == 0
    assert all(w.isfinite().all() for row in one for w in row)


def test_noise_does_not_move_them_much_either_where_every_step_turns_the_bases():
    gradients = noise(DEFICIENT, 5, dtype=torch.float32)    # 16 directions, of which each gradient shows three
    near = [[g + 1e-6 * e for g, e in zip(*both)] for both in zip(gradients, noise(DEFICIENT, 5, 1, torch.float32))]
    one, other = (play(new(DEFICIENT, dtype=torch.float32, precondition_frequency=1), x) for x in (gradients, near))
    assert distance(one, other) < 1e-4


@pytest.mark.parametrize("shape", [(16, 3), (3, 16, 1, 1)])
def test_the_basis_of_a_null_space_turns_little_where_the_gradient_does(shape):
    optimizer, other = new([shape]), new([shape])
    ((g, e),) = noise([shape] * 2, 1)
    play(optimizer, [[g]]), play(other, [[g + 1e-9 * e]])
    for Q, R in zip(*(bases(one, *weights(one))[0] for one in (optimizer, other))):
        if Q is not None:
            assert ((Q * R).sum(0).abs() - 1).abs().max() < 1e-12               # column by column, but for the sign


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("optimizer, holds", [(SOAP, True), (PeerSOAP, False)])
def test_directions_in_which_no_gradient_comes_stay_where_they_are_over_many_refreshes(optimizer, holds, dtype):
    ((seen,),) = noise([(16, 2)], 1, dtype=dtype)           # all gradients lie in these two
    gradients = [[seen @ g] for (g,) in noise([(2, 3)], 60, 1, dtype)]
    running = new([(16, 3)], optimizer, dtype, precondition_frequency=1)
    (p,), Qs = weights(running), []
    for row in gradients:
        play(running, [row])
        Qs.append(running.state[p]["Q0"].clone() if holds else running.state[p]["Q"][0])
    found = (Qs[0].mT @ Qs[-1])[2:].abs().amax(1)           # in whatever order, and but for the sign
    assert found.min() > 0.999 if holds else found.min() < 0.9


@pytest.mark.parametrize("late", [1, 9, 14])
@pytest.mark.parametrize("optimizer, holds", [(SOAP, True), (PeerSOAP, False)])
def test_a_factor_that_was_zero_gets_its_eigenvectors_at_the_refresh_that_finds_it_otherwise(optimizer, holds, late):
    running, refreshed = new([(6, 6), (6, 6)], optimizer), 11 if late < 11 else 21
    gradients = noise([(6, 6), (6, 6)], refreshed)
    for row in gradients[:late]:
        row[1].zero_()                                      # of the second weight only
    play(running, gradients)
    state = running.state[weights(running)[1]]
    for k in range(2):
        GG, Q = (state[f"{name}{k}"] if holds else state[name][k] for name in ("GG", "Q"))
        diagonal, off = in_eigenbasis(GG, Q)
        assert (off < 1e-13 and (diagonal.diff() < 0).all()) if holds else off > 1e-2


# ---- stopped and resumed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_run_that_is_saved_in_the_middle_of_a_period_goes_on_bit_for_bit(dtype):
    gradients = noise(SHAPES, 30, dtype=dtype)
    for row in gradients[:4]:
        row[1] = row[4] = None                              # two weights are younger than the rest
    whole = new(SHAPES, dtype=dtype, max_precondition_dim=10)
    play(whole, gradients[:13])
    file = io.BytesIO()
    torch.save((weights(whole), whole.state_dict()), file)
    file.seek(0)
    values, state = torch.load(file, weights_only=True)
    resumed = SOAP(values, lr=1.0, precondition_frequency=7)                    # settings and factors are the state's
    resumed.load_state_dict(state)
    assert same(snapshot(whole), snapshot(resumed))
    assert distance(play(whole, gradients[13:]), play(resumed, gradients[13:])) == 0
    assert same(snapshot(whole), snapshot(resumed))
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    assert {x.dtype for one in resumed.state.values() for x in one.values()} == {precision, torch.int64}


def test_an_optimizer_can_be_taken_back_to_an_earlier_state_of_its_own():
    gradients, optimizer = noise(SHAPES, 25), new(SHAPES)
    play(optimizer, gradients[:13])
    values, state = snapshot(optimizer)
    first = play(optimizer, gradients[13:])
    with torch.no_grad():
        torch._foreach_copy_(weights(optimizer), values)
    optimizer.load_state_dict(state)
    assert distance(first, play(optimizer, gradients[13:])) == 0


def test_a_copy_of_weights_and_optimizer_goes_on_bit_for_bit_and_by_itself():
    gradients = noise(SHAPES, 30)
    optimizer = new(SHAPES)
    play(optimizer, gradients[:13])
    twin = copy.deepcopy(optimizer)
    before = snapshot(twin)
    later = play(optimizer, gradients[13:])
    assert same(before, snapshot(twin))
    assert distance(later, play(twin, gradients[13:])) == 0


@pytest.mark.parametrize("first", ["loaded", "source"])
@pytest.mark.parametrize("shapes", [SHAPES, [(8, 8)]], ids=["many", "one"])
def test_an_optimizer_that_took_over_the_state_of_another_shares_nothing_with_it(first, shapes):
    gradients = noise(shapes, 20)
    source = new(shapes)
    play(source, gradients[:13])
    loaded = SOAP([nn.Parameter(p.detach().clone()) for p in weights(source)])
    loaded.load_state_dict(source.state_dict())
    moves, waits = (loaded, source) if first == "loaded" else (source, loaded)
    before = snapshot(waits)
    ahead = play(moves, gradients[13:])
    assert same(before, snapshot(waits))
    assert distance(ahead, play(waits, gradients[13:])) == 0


def test_a_dimension_too_large_for_a_factor_can_be_saved_and_loaded_too():
    optimizer, other = (new([(1, 8_000_000)], dtype=torch.float16) for _ in range(2))
    (weight,) = weights(optimizer)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())           # no computer has room for one of 8,000,000²


def foreign(kind):
    """A state that does not fit an optimizer of weights of 4×4 and 5."""
    others = dict(AdamW=torch.optim.AdamW, PeerSOAP=PeerSOAP)
    shapes = dict(matrix=[(5, 4), (5,)], flat=[(16,), (5,)], vector=[(4, 4), (4,)], fewer=[(4, 4)])
    optimizer = new(shapes.get(kind, [(4, 4), (5,)]), others.get(kind, SOAP))
    play(optimizer, noise([p.shape for p in weights(optimizer)], 3))
    state = optimizer.state_dict()
    if kind == "incomplete":
        del state["state"][1]["exp_avg_sq"]
    if kind == "factor":
        state["state"][0]["GG0"] = torch.zeros(5, 5)
    if kind == "more":
        state["state"][0]["GG2"] = torch.zeros(4, 4)
    if kind == "baseless":
        del state["state"][0]["Q0"]
    if kind == "settings":
        state["param_groups"][0]["lr"] = -1.0
    return state


@pytest.mark.parametrize("kind", [
    "AdamW", "PeerSOAP", "matrix", "flat", "vector", "fewer", "incomplete", "factor", "more", "baseless", "settings",
])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(kind):
    optimizer, gradients = new([(4, 4), (5,)]), noise([(4, 4), (5,)], 20)
    play(optimizer, gradients[:5])
    twin, before = copy.deepcopy(optimizer), snapshot(optimizer)
    with pytest.raises(ValueError, match=r"not the state of|must be|doesn't match the size"):
        optimizer.load_state_dict(foreign(kind))
    assert same(before, snapshot(optimizer))
    assert distance(play(optimizer, gradients[5:]), play(twin, gradients[5:])) == 0


@pytest.mark.parametrize("how", ["cleared", "replaced"])
def test_a_state_that_is_thrown_away_begins_anew(how):
    optimizer, gradients = new(SHAPES), noise(SHAPES, 20)
    play(optimizer, gradients[:5])
    fresh = SOAP([nn.Parameter(p.detach().clone()) for p in weights(optimizer)], lr=2e-3)
    if how == "cleared":
        optimizer.state.clear()
    else:
        optimizer.state = defaultdict(dict)
    assert distance(play(optimizer, gradients[5:]), play(fresh, gradients[5:])) == 0
    assert len(optimizer.state) == len(SHAPES)


# ---- the rest of an optimizer's life


def test_a_step_under_autocast_is_as_exact_as_without():
    optimizer, twin = new(SHAPES, dtype=torch.float32), new(SHAPES, dtype=torch.float32)
    gradients = noise(SHAPES, 15, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = play(optimizer, gradients)
    assert distance(seen, play(twin, gradients)) == 0


def test_the_first_gradient_of_a_weight_makes_its_bases_and_moves_nothing():
    optimizer = new(SHAPES, weight_decay=0.5)
    start = snapshot(optimizer)[0]
    first, second = play(optimizer, noise(SHAPES, 2))
    assert all(map(torch.equal, start, first))
    assert all((a != b).all() for a, b in zip(first, second))


def test_a_weight_without_gradient_and_its_state_stay_as_they_are():
    optimizer = new(SHAPES, weight_decay=0.5, precondition_frequency=1)
    play(optimizer, noise(SHAPES, 5))
    weight = weights(optimizer)[0]
    before = copy.deepcopy((weight, optimizer.state[weight]))
    play(optimizer, [[None, *row[1:]] for row in noise(SHAPES, 5)])
    assert torch.equal(before[0], weight)
    assert all(torch.equal(before[1][name], value) for name, value in optimizer.state[weight].items())
    play(optimizer, [[None] * len(SHAPES)])                 # nor does it mind a step for nothing


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_gradients_of_zero_move_nothing_and_only_decay_does(dtype):
    zeros = [[torch.zeros(shape, dtype=dtype) for shape in SHAPES]] * 12
    seen = play(new(SHAPES, dtype=dtype, weight_decay=0.0), zeros)
    assert distance(seen, seen[:1] * 12) == 0
    if dtype == torch.float64:
        decayed = play(new(SHAPES, weight_decay=0.5), zeros)[-1]
        torch.testing.assert_close(decayed, [w * (1 - 2e-3 * 0.5) ** 11 for w in seen[0]], rtol=1e-12, atol=0)


@patient
@given(scale=st.floats(-44, 17), rest=st.floats(-44, 17), at=st.integers(1, 29))
def test_gradients_of_any_size_that_can_be_squared_keep_weights_finite_and_bases_orthonormal(scale, rest, at):
    shapes = [(6, 6), (5, 4, 3)]
    optimizer = new(shapes, dtype=torch.float32, precondition_frequency=2)
    gradients = [[10 ** (scale if k < at else rest) * g for g in row] for k, row in enumerate(noise(shapes, 30))]
    play(optimizer, [[g.float() for g in row] for row in gradients])
    for p in weights(optimizer):
        assert p.isfinite().all()
        for Q in bases(optimizer, p)[0]:
            assert (Q.mT @ Q - torch.eye(len(Q))).abs().max() < 1e-5


def test_a_group_that_is_added_in_mid_training_begins_then_and_the_others_go_on():
    gradients, shapes = noise([(4, 4), (5, 4, 3)], 25), [(4, 4), (5, 4, 3)]
    grown = new(shapes[:1])
    play(grown, [row[:1] for row in gradients[:7]])
    late = new(shapes[1:], lr=0.01)
    grown.add_param_group(dict(params=[nn.Parameter(p.detach().clone()) for p in weights(late)], lr=0.01))
    both = play(grown, gradients[7:])
    alone = play(new(shapes[:1]), [row[:1] for row in gradients])[7:]
    assert distance(both, [[*a, *b] for a, b in zip(alone, play(late, [row[1:] for row in gradients[7:]]))]) < 1e-14


def test_a_closure_is_called_once_with_gradients_enabled_and_what_it_returns_is_returned():
    optimizer, calls = new([(4, 4)], precondition_frequency=2), []
    (w,) = weights(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        calls.append(loss)
        return loss

    with torch.no_grad():                                   # as some frameworks call it
        for _ in range(5):
            assert optimizer.step(closure) is calls[-1]
    assert len(calls) == 5 and calls[-1] < calls[0]
    assert optimizer.step() is None


def test_a_step_leaves_the_gradients_as_they_are():
    optimizer, rows = new(SHAPES), noise(SHAPES, 12)
    for row in rows:
        play(optimizer, [row])
        assert all(torch.equal(p.grad, g) for p, g in zip(weights(optimizer), row))


@pytest.mark.parametrize("none", [True, False])
def test_zero_grad_leaves_a_weight_without_gradient_or_with_one_of_zero(none):
    optimizer = new([(4, 4)])
    play(optimizer, noise([(4, 4)], 5))
    optimizer.zero_grad(set_to_none=none)
    (before,), _ = snapshot(optimizer)
    optimizer.step()
    assert torch.equal(before, weights(optimizer)[0]) == none                   # with one, the first moment moves it


def test_a_schedule_of_torch_sets_the_learning_rate_of_each_step():
    gradients = noise(SHAPES, 12)
    scheduled, by_hand = new(SHAPES), new(SHAPES)
    schedule = torch.optim.lr_scheduler.LambdaLR(scheduled, lambda step: 1 / (1 + step))
    for step, row in enumerate(gradients):
        by_hand.param_groups[0]["lr"] = 2e-3 / (1 + step)
        assert distance(play(scheduled, [row]), play(by_hand, [row])) < 1e-15
        schedule.step()


# ---- gradients that are not finite


def two_groups():
    shapes = [(6, 6), (4,), (5, 3), (7,)]
    return started([(dict(lr=2e-3), [0, 1]), (dict(lr=0.01, weight_decay=0.1), [2, 3])], shapes, torch.float32), shapes


def spoilt(gradients, value, at):
    gradients = [g.clone() for g in gradients]
    gradients[at].view(-1)[2] = value
    return gradients


NOT_FINITE = [math.nan, math.inf, -math.inf, 1e30]          # the last one is infinite when squared in float32


@pytest.mark.parametrize("step", [0, 1, 5, 10])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_gradient_that_is_not_finite_raises_before_anything_has_changed_and_can_be_passed_over(value, step):
    (optimizer, shapes), (twin, _) = two_groups(), two_groups()
    gradients = noise(shapes, 25, dtype=torch.float32)
    play(optimizer, gradients[:step]), play(twin, gradients[:step])
    before = snapshot(optimizer)
    with pytest.raises(FloatingPointError, match=r"a NaN or .* of shape \(5, 3\); nothing was changed"):
        play(optimizer, [spoilt(gradients[step], value, at=2)])
    assert all(map(torch.equal, before[0], weights(optimizer)))
    assert step == 0 or same(before, snapshot(optimizer))   # before the first step there is no state to compare
    assert distance(play(optimizer, gradients[step:]), play(twin, gradients[step:])) == 0


def test_every_shape_with_a_gradient_that_is_not_finite_is_named():
    optimizer, shapes = two_groups()
    (row,) = noise(shapes, 1, dtype=torch.float32)
    with pytest.raises(FloatingPointError, match=r"of shape (\(6, 6\) or \(4,\)|\(4,\) or \(6, 6\));"):
        play(optimizer, [spoilt(spoilt(row, math.nan, at=0), math.inf, at=1)])


def test_gradients_whose_squares_only_add_up_to_infinity_are_refused_too():
    optimizer = new([(4,)] * 4, dtype=torch.float32)
    with pytest.raises(FloatingPointError, match="too large to square"):
        play(optimizer, [[torch.full((4,), 6e18)] * 4])


@pytest.mark.parametrize("dtype, large", [(torch.float32, 1e18), (torch.bfloat16, 1e18), (torch.float64, 1e150)])
def test_what_can_be_squared_is_taken_and_what_cannot_is_not(dtype, large):
    optimizer = new([(3, 3)], dtype=dtype)
    (start,), _ = snapshot(optimizer)
    play(optimizer, [[large * g for g in row] for row in noise([(3, 3)], 5, dtype=dtype)])
    with pytest.raises(FloatingPointError):
        play(optimizer, [[1e10 * large * torch.ones(3, 3, dtype=dtype)]])
    assert 0 < (weights(optimizer)[0] - start).abs().max() < 0.1


@pytest.mark.parametrize("value", NOT_FINITE)
def test_where_looking_means_waiting_such_a_gradient_counts_as_zero_and_is_told_of_at_the_next_refresh(value):
    shapes = [(6, 6), (5, 3), (4,)]
    optimizer, twin = (new(shapes, dtype=torch.float32, precondition_frequency=10) for _ in range(2))
    gradients = noise(shapes, 40, dtype=torch.float32)
    play(optimizer, gradients[:3]), play(twin, gradients[:3])
    for _, bundles in optimizer._bundles.values():
        for bundle in bundles:
            bundle.looks = False                            # as on an accelerator

    zeros = [torch.zeros_like(g) for g in gradients[3]]     # of all weights in the bundle
    seen = play(optimizer, [spoilt(gradients[3], value, at=1), *gradients[4:10]])
    assert distance(seen, play(twin, [zeros, *gradients[4:10]])) == 0
    with pytest.raises(FloatingPointError, match=r"since the last refresh .* it was taken as zero"):
        play(optimizer, gradients[10:11])
    play(twin, gradients[10:11])
    assert distance(play(optimizer, gradients[11:]), play(twin, gradients[11:])) == 0


def test_it_is_told_of_at_once_if_other_weights_have_gradients_next():
    shapes = [(6, 6), (5, 3)]
    gradients = noise(shapes, 25)
    optimizer, twin = new(shapes), new(shapes)
    play(optimizer, gradients[:3]), play(twin, gradients[:3])
    optimizer._bundles[0][1][0].looks = False
    play(optimizer, [spoilt(gradients[3], math.nan, at=1)])
    play(twin, [[torch.zeros_like(g) for g in gradients[3]]])
    before, rest = snapshot(optimizer), [[row[0], None] for row in gradients[4:]]
    with pytest.raises(FloatingPointError, match="it was taken as zero"):
        play(optimizer, rest[:1])
    assert same(before, snapshot(optimizer))                # the step can be taken again
    assert distance(play(optimizer, rest), play(twin, rest)) == 0


def test_it_is_told_of_once_however_many_bundles_are_broken():
    shapes = [(6, 6), (5, 3)]
    optimizer, gradients = SOAP([dict(params=[p]) for p in weights(new(shapes))]), noise(shapes, 30)
    play(optimizer, gradients[:3])
    for _, (bundle,) in optimizer._bundles.values():
        bundle.looks = False
    play(optimizer, [spoilt(spoilt(gradients[3], math.nan, at=0), math.nan, at=1), *gradients[4:10]])
    with pytest.raises(FloatingPointError, match="it was taken as zero"):
        play(optimizer, gradients[10:11])
    play(optimizer, gradients[11:])                         # over the next refresh, without a word


def test_gradients_of_which_only_the_sum_of_squares_is_too_large_are_named_too():
    optimizer = new([(4,)] * 4, dtype=torch.float32)
    with pytest.raises(FloatingPointError, match=r"too large to square, of a weight of shape \(4,\); nothing"):
        play(optimizer, [[torch.full((4,), 6e18)] * 4])


# ---- refuses


@pytest.mark.parametrize("changes, message", [
    *((dict(lr=lr), r"lr must be in \[0, inf\)") for lr in (-1e-3, math.nan, math.inf)),
    *((dict(weight_decay=decay), "weight_decay must be in") for decay in (-0.1, math.nan, math.inf)),
    *((dict(betas=(beta, 0.9)), r"betas\[0\] must be in \[0, 1\)") for beta in (-0.1, 1.0, math.nan)),
    *((dict(betas=(0.9, beta)), r"betas\[1\] must be in \[0, 1\)") for beta in (-0.1, 1.0, math.nan)),
    *((dict(shampoo_beta=beta), r"shampoo_beta must be in \[0, 1\)") for beta in (-0.1, 1.0, math.nan)),
    *((dict(eps=eps), "eps must be above 0") for eps in (0, -1e-8, 1e-50, math.nan, math.inf)),
    *((dict(precondition_frequency=f), "frequency must be a whole number, 1 or more") for f in (0, -1, 1.5, math.inf)),
    *((dict(max_precondition_dim=d), "max_precondition_dim must be a whole number, 1 or more") for d in (0, -1, 1.5)),
])
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        new([(4, 4)], **changes)
    optimizer = new([(4, 4)])
    play(optimizer, noise([(4, 4)], 3))
    twin, before = copy.deepcopy(optimizer), snapshot(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group(dict(params=[nn.Parameter(torch.zeros(2, 2))], **changes))
    assert same(before, snapshot(optimizer)) and len(optimizer.param_groups) == 1
    assert distance(play(optimizer, noise([(4, 4)], 9)), play(twin, noise([(4, 4)], 9))) == 0


def test_a_setting_that_is_unknown_is_refused():
    with pytest.raises(TypeError, match="merge_dims"):
        new([(4, 4)], merge_dims=True)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_weights_that_are_not_real_numbers_in_floating_point_are_refused(dtype):
    with pytest.raises(TypeError, match=rf"real weights .* \(2, 3\) is {dtype}"):
        SOAP([torch.ones(2, 3, dtype=dtype)])
    optimizer = new([(4, 4)])
    with pytest.raises(TypeError):
        optimizer.add_param_group(dict(params=[torch.ones(2, 3, dtype=dtype)]))
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("steps", [0, 3])
def test_a_sparse_gradient_is_refused_and_nothing_moves(steps):
    optimizer = new([(4, 4), (5, 3)])
    *dense, (first, second) = noise([(4, 4), (5, 3)], steps + 1)
    play(optimizer, dense)
    before = snapshot(optimizer)[0]
    with pytest.raises(TypeError, match=r"dense gradients; that of shape \(5, 3\) is torch.sparse_coo"):
        play(optimizer, [[first, second.to_sparse()]])
    assert all(map(torch.equal, before, weights(optimizer)))


# ---- shapes, layouts and precisions


ODD = [
    (), (1,), (1, 1), (1, 5), (5, 1), (4, 1, 3, 3), (1, 4, 3, 3), (4, 3, 5), (4, 3, 2, 2, 2), (2,) * 6, (0,), (3, 0, 2),
]


@pytest.mark.parametrize("largest", [10000, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_odd_shapes_move_by_about_the_learning_rate_and_empty_ones_are_passed_over(dtype, largest):
    optimizer = new(ODD, dtype=dtype, lr=0.1, weight_decay=0.0, max_precondition_dim=largest)
    start = snapshot(optimizer)[0]
    play(optimizer, noise(ODD, 2, dtype=dtype))             # the first step of Adam is the sign, in its basis
    for p, before in zip(weights(optimizer), start):
        assert p.dtype == dtype and p.shape == before.shape
        moved = (p - before).double().norm() / math.sqrt(max(p.numel(), 1))
        assert 0.08 < moved < 0.12 or p.numel() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_weight_in_half_precision_has_the_state_of_one_in_float32_and_rounds_its_steps_only(dtype):
    gradients = noise(SHAPES, 30, dtype=dtype)
    half = new(SHAPES, dtype=dtype, lr=0.1)
    whole = SOAP([nn.Parameter(p.detach().float()) for p in weights(half)], lr=0.1)
    for row in gradients:
        before = [[p.float().clone() for p in weights(optimizer)] for optimizer in (half, whole)]
        (rounded,), (exact,) = play(half, [row]), play(whole, [[g.float() for g in row]])
        for after, aim, a, b in zip(rounded, exact, *before):
            wanted = a + (aim - b)                          # but for two roundings, of the step and of the decay
            assert ((after - wanted).abs() <= torch.finfo(dtype).eps * torch.maximum(a.abs(), wanted.abs())).all()
    for p, q in zip(weights(half), weights(whole)):
        assert all(torch.equal(half.state[p][name], whole.state[q][name]) for name in whole.state[q])


def test_weights_of_several_precisions_in_one_optimizer_take_the_steps_they_would_take_alone():
    kinds = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32]
    gradients = [[g.to(dtype) for g, dtype in zip(row, kinds)] for row in noise([(6, 6)] * 5, 25)]
    values = [w.to(dtype) for w, dtype in zip(noise([(6, 6)] * 5, 1, 99)[0], kinds)]
    mixed = SOAP([nn.Parameter(w.clone()) for w in values])
    seen = play(mixed, gradients)
    for k, (p, w) in enumerate(zip(weights(mixed), values)):
        alone = SOAP([nn.Parameter(w)])
        assert distance([row[k : k + 1] for row in seen], play(alone, [row[k : k + 1] for row in gradients])) < 1e-6
        assert mixed.state[p]["exp_avg"].dtype == alone.state[weights(alone)[0]]["exp_avg"].dtype


def spread(x):
    """The same numbers with other strides: every dimension at twice its stride, the first one last."""
    return torch.stack([x, x], -1).movedim(0, -1).contiguous().movedim(-1, 0)[..., 0]


LAYOUTS = dict(
    contiguous=torch.clone, channels_last=lambda x: x.contiguous(memory_format=torch.channels_last), spread=spread,
)


@pytest.mark.parametrize("of_weight, of_gradient", list(product(LAYOUTS, LAYOUTS)))
def test_the_layout_of_weights_and_gradients_changes_no_bit_and_stays(of_weight, of_gradient):
    shape, gradients = (12, 4, 3, 3), noise([(12, 4, 3, 3)], 15)
    plain = new([shape])
    other = SOAP([nn.Parameter(LAYOUTS[of_weight](*snapshot(plain)[0]).detach())], lr=2e-3)
    (w,) = weights(other)
    strides = w.stride()
    for row in gradients:
        w.grad = LAYOUTS[of_gradient](*row)
        other.step()
    assert torch.equal(play(plain, gradients)[-1][0], w)
    assert w.stride() == strides


# ---- what it is for, and what it costs


def test_on_a_problem_that_is_ill_conditioned_in_turned_coordinates_it_gets_further_than_adamw():
    left, right = turns((12, 12))
    steep = torch.logspace(0, -2, 12, dtype=torch.float64)
    A, B = left * steep @ left.mT, right * steep @ right.mT
    ((target,),) = noise([(12, 12)], 1, seed=3)
    losses = []
    for optimizer in (SOAP, torch.optim.AdamW):
        w = nn.Parameter(torch.zeros_like(target))
        running = optimizer([w], lr=0.03, weight_decay=0.0)
        for _ in range(300):
            loss = ((A @ (w - target) @ B) ** 2).sum()
            running.zero_grad()
            loss.backward()
            running.step()
        losses.append(loss.item())
    assert losses[0] < 0.01 * losses[1]


def test_bases_are_turned_at_refreshes_only_and_those_of_one_size_in_one_call(monkeypatch):
    calls = []
    for name in ("qr", "eigh"):
        original = getattr(torch.linalg, name)

        def noted(x, *arguments, name=name, original=original, **options):
            calls.append((name, x.shape[-1]))
            return original(x, *arguments, **options)

        monkeypatch.setattr(torch.linalg, name, noted)

    shapes = [(8, 8), (8, 8), (8, 12, 3, 3), (8, 12, 3, 3), (12, 8), (7,)]
    often = dict(precondition_frequency=5)
    optimizer = started([(often, [0, 2, 5]), (often, [1, 3, 4])], shapes)
    for step, row in enumerate(noise([p.shape for p in weights(optimizer)], 17)):
        calls.clear()
        play(optimizer, [row])
        if step:
            assert sorted(calls) == ([("qr", 3), ("qr", 8), ("qr", 12)] if step % 5 == 0 else [])


def test_weights_of_one_shape_are_turned_in_one_call_wherever_they_stand(monkeypatch):
    calls = []
    monkeypatch.setattr("dcae_lib.soap.project", lambda x, *rest: calls.append(x.shape) or project(x, *rest))
    optimizer = new([(8, 8), (6, 5, 3), (8, 8), (4,), (6, 5, 3), (8, 8)])
    for row in noise([p.shape for p in weights(optimizer)], 3):
        calls.clear()
        play(optimizer, [row])
    assert sorted(calls) == [(1, 4), (2, 6, 5, 3), (3, 8, 8)]


READS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__", "__array__")


def test_what_is_read_in_a_step_does_not_depend_on_the_number_of_weights(monkeypatch):
    reads = []
    for name in READS:                                      # by which Python reads values; a GPU would wait
        original = getattr(torch.Tensor, name)

        def noted(self, *arguments, original=original, **options):
            reads.append(self)
            return original(self, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, noted)

    counts = {}
    for looks, shapes in product([True, False], [SHAPES[:1], SHAPES]):
        optimizer = new(shapes)
        play(optimizer, noise(shapes, 3))
        for _, bundles in optimizer._bundles.values():
            for bundle in bundles:
                bundle.looks = looks
        reads.clear()
        play(optimizer, noise(shapes, 4))                   # no refresh is due
        counts.setdefault(looks, []).append(len(reads))
    one, all_ = counts[True]
    assert one == all_
    assert counts[False] == [one - 4] * 2                   # one look at each step, where it costs nothing
