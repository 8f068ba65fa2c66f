"""SOAP takes the steps of the authors' algorithm in any basis, resumes bit for bit, and refuses what cannot work."""

import copy
import io
import math
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

patient = settings(max_examples=25)

# Square, convolution, transposed convolution, conv1d and vectors: no dimension above the product of the others, where
# the first factor has a null space, whose basis is arbitrary. Two each, since weights of one shape share their calls.
SHAPES = [(8, 8), (8, 8), (12, 4, 3, 3), (12, 4, 3, 3), (4, 12, 2, 2), (4, 12, 2, 2), (6, 10, 5), (10,), (10,)]
DEFICIENT = [(16, 3, 1, 1), (3, 16, 1, 1), (3, 16, 2, 2), (3, 16, 2, 2)]  # with a singular first factor


def noise(shapes, steps, seed=0, dtype=torch.float64):
    """Gaussian numbers: for each step a list with one tensor per shape."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes] for _ in range(steps)]


def new(shapes, optimizer=SOAP, dtype=torch.float64, lr=2e-3, **changes):
    """An optimizer and its weights, the same each time."""
    return optimizer([nn.Parameter(w) for w in noise(shapes, 1, 99, dtype)[0]], lr=lr, **changes)


def grouped(groups, shapes, dtype=torch.float64):
    """An optimizer with a group for each pair of settings and of places in the list of shapes."""
    values = noise(shapes, 1, 99, dtype)[0]
    return SOAP([dict(own, params=[nn.Parameter(values[k]) for k in places]) for own, places in groups])


def weights(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def play(optimizer, steps):
    """Take a step for each list of gradients, None among them for a weight without; return the weights after each."""
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
    """Compare two snapshots bit for bit."""
    (ps, a), (qs, b) = one, other
    numbers, others = ({(k, name): x for k, own in c["state"].items() for name, x in own.items()} for c in (a, b))
    equal = all(map(torch.equal, ps, qs)) and a["param_groups"] == b["param_groups"]
    return equal and numbers.keys() == others.keys() and all(torch.equal(x, others[key]) for key, x in numbers.items())


IN_FLOAT64 = SimpleNamespace(**vars(torch) | dict(float32=torch.float64))


class ExactPeerSOAP(PeerSOAP):
    """The oracle with its QR in the precision of the weights; as published it is in float32."""

    def get_orthogonal_matrix_qr(self, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pytorch_optimizer.optimizer.soap, "torch", IN_FLOAT64)
            return super().get_orthogonal_matrix_qr(*arguments)


SETTINGS = [dict(weight_decay=0.3), dict(betas=(0.0, 0.0)), dict(betas=(0.9, 0.99)), dict(eps=0.1), dict(lr=0.0)]
SETTINGS += [{}, *(dict(precondition_frequency=f) for f in (1, 3)), *(dict(shampoo_beta=b) for b in (0.7, 0.0))]
SETTINGS += [dict(max_precondition_dim=largest) for largest in (1, 2, 4, 8)]
CASES = [(ExactPeerSOAP, torch.float64, 1e-12, changes) for changes in SETTINGS]
CASES += [(PeerSOAP, torch.float64, 1e-7, {}), (PeerSOAP, torch.float32, 1e-4, {})]


@pytest.mark.parametrize("peer, dtype, limit, changes", CASES, ids=str)
def test_steps_match_the_oracle_for_all_settings(peer, dtype, limit, changes):
    gradients = noise(SHAPES, 40, dtype=dtype)
    mine, theirs = (play(new(SHAPES, optimizer, dtype, **changes), gradients) for optimizer in (SOAP, peer))
    assert distance(mine, theirs) < limit
    assert distance(mine, mine[:1] * 40) > 0.02 or changes == dict(lr=0.0)  # they move


@patient
@given(data=st.data(), frequency=st.integers(1, 6), seed=st.integers(0, 999))
def test_weights_of_any_shape_match_the_oracle(data, frequency, seed):
    shape = st.lists(st.integers(1, 6), max_size=5).map(tuple)
    full = shape.filter(lambda s: len(s) < 2 or all(d * d <= math.prod(s) for d in s))
    shapes = data.draw(st.lists(full, min_size=1, max_size=3)) * 2
    changes = dict(precondition_frequency=frequency, max_precondition_dim=data.draw(st.sampled_from([3, 9])))
    gradients = noise(shapes, 2 * frequency + 2, seed)
    mine, theirs = (play(new(shapes, optimizer, **changes), gradients) for optimizer in (SOAP, ExactPeerSOAP))
    assert distance(mine, theirs) < 1e-8  # a first factor can be close to singular


CHANGES = dict(lr=0.05, betas=(0.5, 0.8), shampoo_beta=0.5, eps=0.3, weight_decay=0.9, precondition_frequency=4)


@pytest.mark.parametrize("name, value", CHANGES.items())
def test_changed_settings_apply_from_next_step(name, value):
    gradients = noise(SHAPES, 40)
    mine, theirs = new(SHAPES), new(SHAPES, ExactPeerSOAP)
    play(mine, gradients[:13]), play(theirs, gradients[:13])
    unchanged = copy.deepcopy(mine)
    mine.param_groups[0][name] = theirs.param_groups[0][name] = value
    for state in theirs.state.values():  # which keeps some settings there
        state["shampoo_beta"] = mine.param_groups[0]["shampoo_beta"] or mine.param_groups[0]["betas"][1]
        state["precondition_frequency"] = mine.param_groups[0]["precondition_frequency"]
    after = play(mine, gradients[13:])
    assert distance(after, play(theirs, gradients[13:])) < 1e-12
    assert distance(after, play(unchanged, gradients[13:])) > 1e-4


@patient
@given(
    steps=st.lists(st.lists(st.sampled_from([1, 1, 0, None]), min_size=5, max_size=5), min_size=1, max_size=14),
    frequency=st.integers(1, 4),
    split=st.integers(1, 4),
)
def test_a_weight_moves_as_if_it_were_alone(steps, frequency, split):
    shapes, sizes = [(4, 4), (4, 4), (4, 4), (5, 4, 3), (4,)], [1, 1e-5, 1, 1e5, 1]
    gradients = [  # some all zero, some None
        [None if scale is None else scale * size * g for g, scale, size in zip(row, scales, sizes)]
        for row, scales in zip(noise(shapes, len(steps)), steps)
    ]
    first, second = dict(weight_decay=0.1, precondition_frequency=frequency), dict(lr=0.01, betas=(0.8, 0.9), eps=1e-3)
    joint = play(grouped([(first, range(split)), (second, range(split, 5))], shapes), gradients)
    for k in range(5):
        alone = grouped([(first if k < split else second, [k])], shapes)
        for row, line in zip(joint, gradients):
            if line[k] is not None:  # else it has not moved, decayed or aged
                play(alone, [[line[k]]])
            torch.testing.assert_close(row[k], weights(alone)[0].detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "optimizer, steps, every, low, high", [(SOAP, 60, 10, 0, 1e-5), (SOAP, 5, 1, 0, 1e-4), (PeerSOAP, 2, 10, 1e-3, 1)]
)
def test_a_millionth_of_noise_hardly_moves_weights_with_singular_factors(optimizer, steps, every, low, high):
    gradients, added = (noise(DEFICIENT, steps, seed, torch.float32) for seed in (0, 1))
    near = [[g + 1e-6 * e for g, e in zip(*both)] for both in zip(gradients, added)]
    runs = [gradients, gradients, near]
    one, again, other = (play(new(DEFICIENT, optimizer, torch.float32, precondition_frequency=every), x) for x in runs)
    assert low <= distance(one, other) < high  # as published: half a step apart at once
    assert distance(one, again) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("optimizer, holds", [(SOAP, True), (PeerSOAP, False)])
def test_directions_without_gradient_stay_over_many_refreshes(optimizer, holds, dtype):
    ((seen,),) = noise([(16, 2)], 1, dtype=dtype)  # all gradients lie in these two
    running = new([(16, 3)], optimizer, dtype, precondition_frequency=1)
    (p,), Qs = weights(running), []
    for (g,) in noise([(2, 3)], 60, 1, dtype):
        play(running, [[seen @ g]])
        Qs.append(running.state[p]["Q0"].clone() if holds else running.state[p]["Q"][0])
    found = (Qs[0].mT @ Qs[-1])[2:].abs().amax(1)  # in whatever order, and but for the sign
    assert found.min() > 0.999 if holds else found.min() < 0.9
    if holds:
        running.param_groups[0]["shampoo_beta"] = 0.0
        play(running, [[torch.zeros(16, 3, dtype=dtype)]])  # which makes the factor 0
        assert torch.equal(running.state[p]["Q0"], Qs[-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_saved_run_resumes_bit_for_bit(dtype):
    gradients = noise(SHAPES, 30, dtype=dtype)
    for row in gradients[:4]:
        row[1] = row[4] = None  # two weights are younger than the rest
    whole = new(SHAPES, dtype=dtype, max_precondition_dim=10)
    play(whole, gradients[:13])
    before, file = snapshot(whole), io.BytesIO()
    torch.save((weights(whole), whole.state_dict()), file)
    file.seek(0)
    values, state = torch.load(file, weights_only=True)
    resumed = SOAP(values, lr=1.0, precondition_frequency=7)  # settings and factors are the state's
    resumed.load_state_dict(state)
    assert same(snapshot(whole), snapshot(resumed))
    after = play(whole, gradients[13:])
    assert distance(after, play(resumed, gradients[13:])) == 0
    assert same(snapshot(whole), snapshot(resumed))
    with torch.no_grad():
        torch._foreach_copy_(weights(resumed), before[0])  # back again
    resumed.load_state_dict(before[1])
    assert distance(after, play(resumed, gradients[13:])) == 0


@pytest.mark.parametrize("shapes", [SHAPES, [(8, 8)]], ids=["many", "one"])
@pytest.mark.parametrize("how", ["deepcopy", "loaded", "source"])
def test_a_copy_goes_on_bit_for_bit_and_shares_nothing(how, shapes):
    gradients, moves = noise(shapes, 30), new(shapes)
    play(moves, gradients[:13])
    if how == "deepcopy":
        waits = copy.deepcopy(moves)
    else:
        waits = SOAP([nn.Parameter(p.detach().clone()) for p in weights(moves)])
        waits.load_state_dict(moves.state_dict())
        moves, waits = (waits, moves) if how == "source" else (moves, waits)
    before = snapshot(waits)
    ahead = play(moves, gradients[13:])
    assert all(torch.equal(p.grad, g) for p, g in zip(weights(moves), gradients[-1]))  # nor does a step change those
    assert same(before, snapshot(waits))
    assert distance(ahead, play(waits, gradients[13:])) == 0


def test_autocast_makes_a_step_no_less_exact():
    optimizer, twin = new(SHAPES, dtype=torch.float32), new(SHAPES, dtype=torch.float32)
    gradients = noise(SHAPES, 15, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = play(optimizer, gradients)
    assert distance(seen, play(twin, gradients)) == 0


@patient
@given(scale=st.floats(-44, 17), rest=st.floats(-44, 17), at=st.integers(1, 29))
def test_gradients_of_any_size_keep_weights_finite_and_bases_orthonormal(scale, rest, at):
    shapes = [(6, 6), (5, 4, 3)]
    optimizer = new(shapes, dtype=torch.float32, precondition_frequency=2)
    gradients = [[10 ** (scale if k < at else rest) * g for g in row] for k, row in enumerate(noise(shapes, 30))]
    play(optimizer, [[g.float() for g in row] for row in gradients])
    assert all(p.isfinite().all() for p in weights(optimizer))
    for Q in (x for state in optimizer.state.values() for name, x in state.items() if name[0] == "Q"):
        assert (Q.mT @ Q - torch.eye(len(Q))).abs().max() < 1e-5


def test_a_closure_is_called_once_with_gradients_enabled():
    optimizer, calls = new([(4, 4)], precondition_frequency=2), []
    (w,) = weights(optimizer)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # which adds settings to the group

    def closure():
        optimizer.zero_grad()
        calls.append((w**2).sum())
        calls[-1].backward()
        return calls[-1]

    with torch.no_grad():  # as some frameworks call it
        for _ in range(5):
            assert optimizer.step(closure) is calls[-1]
    assert len(calls) == 5 and calls[-1] < calls[0]
    assert optimizer.step() is None


def two_groups():
    shapes = [(6, 6), (4,), (5, 3), (7,)]
    return grouped([(dict(lr=2e-3), [0, 1]), (dict(lr=0.01, weight_decay=0.1), [2, 3])], shapes, torch.float32), shapes


NOT_FINITE = [math.nan, math.inf, -math.inf, 1e30]  # the last one is infinite when squared in float32


@pytest.mark.parametrize("step", [0, 1, 5, 10])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_gradient_not_finite_raises_before_anything_changes(value, step):
    (optimizer, shapes), (twin, _) = two_groups(), two_groups()
    gradients = noise(shapes, 25, dtype=torch.float32)
    play(optimizer, gradients[:step]), play(twin, gradients[:step])
    before, spoilt = snapshot(optimizer), [g.clone() for g in gradients[step]]
    spoilt[2].view(-1)[2] = value  # of the second group
    with pytest.raises(FloatingPointError, match="NaN, infinite or too large"):
        play(optimizer, [spoilt])
    assert all(map(torch.equal, before[0], weights(optimizer)))
    assert step == 0 or same(before, snapshot(optimizer))  # before the first step there is no state to compare
    assert distance(play(optimizer, gradients[step:]), play(twin, gradients[step:])) == 0


@pytest.mark.parametrize("dtype, large", [(torch.float32, 1e18), (torch.bfloat16, 1e18), (torch.float64, 1e150)])
def test_only_gradients_too_large_to_square_are_refused(dtype, large):
    optimizer = new([(3, 3)] * 4, dtype=dtype)
    start = snapshot(optimizer)[0]
    play(optimizer, [[large * g for g in row] for row in noise([(3, 3)] * 4, 5, dtype=dtype)])
    assert all(0 < (p - w).abs().max() < 0.1 for p, w in zip(weights(optimizer), start))
    with pytest.raises(FloatingPointError, match="too large to square"):
        play(optimizer, [[torch.full((3, 3), 0.3 * torch.finfo(dtype).max ** 0.5, dtype=dtype)] * 4])  # their sum is


BELOW_ONE, FINITE = (-0.1, 1.0, math.nan), (-0.1, math.nan, math.inf)
REFUSED = [
    *((dict(lr=x), r"lr and weight_decay must be in \[0, inf\)") for x in FINITE),
    *((dict(weight_decay=x), r"lr and weight_decay must be in \[0, inf\)") for x in FINITE),
    *((dict(betas=(x, 0.9)), r"betas and shampoo_beta must be in \[0, 1\)") for x in BELOW_ONE),
    *((dict(betas=(0.9, x)), r"betas and shampoo_beta must be in \[0, 1\)") for x in BELOW_ONE),
    *((dict(shampoo_beta=x), r"betas and shampoo_beta must be in \[0, 1\)") for x in BELOW_ONE),
    *((dict(eps=x), "eps must be above 0") for x in (0, -1e-8, 1e-50, math.nan, math.inf)),
    *((dict(precondition_frequency=x), "frequency must be a whole number, 1 or more") for x in (0, -1, 1.5, math.inf)),
    *((dict(max_precondition_dim=x), "max_precondition_dim must be a whole number, 1 or more") for x in (0, -1, 1.5)),
]


@pytest.mark.parametrize("changes, message", REFUSED)
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


ODD = [(), (1,), (1, 1), (1, 5), (5, 1), (0,), (3, 0, 2), (4, 1, 3, 3), (1, 4, 3, 3), (1, 5, 3)]
ODD += [(4, 3, 5), (4, 3, 2, 2, 2), (2,) * 6]


@pytest.mark.parametrize("largest", [10000, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_odd_shapes_move_by_about_the_learning_rate(dtype, largest):
    optimizer = new(ODD, dtype=dtype, lr=0.1, weight_decay=0.0, max_precondition_dim=largest)
    start = snapshot(optimizer)[0]
    play(optimizer, noise(ODD, 2, dtype=dtype))  # the first step of Adam is the sign, in its basis
    for p, before in zip(weights(optimizer), start):
        assert p.dtype == dtype and p.shape == before.shape
        moved = (p - before).double().norm() / math.sqrt(max(p.numel(), 1))
        assert 0.08 < moved < 0.12 or p.numel() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_steps_but_not_state(dtype):
    values, n = noise(SHAPES, 1, 99, dtype)[0], len(SHAPES)
    both = SOAP([nn.Parameter(w) for w in [*values, *(w.float() for w in values), values[0].double()]], lr=0.1)
    for row in noise(SHAPES, 30, dtype=dtype):
        before = [p.float().clone() for p in weights(both)]
        (after,) = play(both, [[*row, *(g.float() for g in row), row[0].double()]])
        for rounded, exact, a, b in zip(after[:n], after[n:], before[:n], before[n:]):
            wanted = a + (exact - b)  # but for two roundings, of the step and of the decay
            assert ((rounded - wanted).abs() <= torch.finfo(dtype).eps * torch.maximum(a.abs(), wanted.abs())).all()
    for p, q in zip(weights(both)[:n], weights(both)[n:]):
        assert all(torch.equal(both.state[p][name], both.state[q][name]) for name in both.state[q])
        assert both.state[q]["exp_avg"].dtype == torch.float32
    assert both.state[weights(both)[-1]]["Q0"].dtype == torch.float64


LAYOUTS = dict(
    contiguous=torch.clone,
    channels_last=lambda x: x.contiguous(memory_format=torch.channels_last),
    spread=lambda x: torch.stack([x, x], -1).movedim(0, -1).contiguous().movedim(-1, 0)[..., 0],  # twice the strides
)


@pytest.mark.parametrize("of_weight, of_gradient", list(product(LAYOUTS, LAYOUTS)))
def test_memory_layouts_change_no_bit_and_stay(of_weight, of_gradient):
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


def test_a_step_reads_no_value_from_the_device():
    values = noise(SHAPES, 1, dtype=torch.float32)[0]
    optimizer = SOAP([nn.Parameter(w.to("meta")) for w in values])  # a device without values: reading one is an error
    for p in weights(optimizer):
        p.grad = torch.empty_like(p)
    for _ in range(12):  # a refresh among them
        optimizer.step()
    assert {int(own["step"]) for own in optimizer.state.values()} == {12}
