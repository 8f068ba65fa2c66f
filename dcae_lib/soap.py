"""SOAP: Adam, run in the eigenbasis of Shampoo's preconditioner.

Vyas et al. 2024, "SOAP: Improving and Stabilizing Shampoo using Adam", arXiv 2409.11321, algorithm 3, as in the
authors' code. The algorithm comes first, what it stands on after it. Whatever is done to one weight is done to all
weights of its shape in one call: n of them are one tensor, of shape [n, o, i, *kernel] for a convolution.
"""

import math
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

class World:
    size=1
    def spread(self, c, *t): return c(*t)
ALONE=World()

# A refresh iterates on GG + shift · I. That has the same eigenvectors, but directions in which no gradient has come yet
# stay where they are, instead of being made of rounding errors, which a shift of fewer epsilons does not outweigh.
SHIFT = 1000                                                # epsilons of the number format, times the largest eigenvalue

# Several processes share the refresh of factors from this size on. Smaller ones take longer to send than to compute
# (results/bench/distributed.json).
SHARED_FROM = 256

NOT_FINITE = "held a NaN or an infinity, or was too large to square"


class SOAP(torch.optim.Optimizer):
    """Adam in a basis that turns slowly: that of the eigenvectors of the gradients' own second moments.

    A weight of d₁ × d₂ × … has, for each dimension, a factor GG of d × d: the running mean of g gᵀ, g unfolded along
    that dimension. The columns of Q are its eigenvectors. The first step of a weight makes both and moves nothing.
    Each later one takes an Adam step along the axes of Q; every `precondition_frequency` of them, one power iteration
    turns Q after GG. The first moment turns with it; the second is permuted into the new order of the eigenvalues.

    lr: learning rate.  betas: decay of the two moments.  shampoo_beta: decay of GG; None: betas[1].
    eps: added to the root of the second moment before that is corrected for its bias, as in the authors' code
        (torch.optim.Adam: after).
    weight_decay: decoupled; each step takes lr · weight_decay of the weight.
    precondition_frequency: steps between two refreshes of Q.
    max_precondition_dim: dimensions above it get no factor. Read at the first gradient of a weight.

    Weights of one dimension, or none, get plain Adam. Settings may differ between groups and change between steps.
    State is float32 for weights in half precision, else in the weight's own; moments are kept in the eigenbasis, as
    [*kernel, o, i]. Unlike the authors' code, this has a fixed choice of basis where the gradients so far say nothing,
    and makes eigenvectors anew once a factor that was all zero no longer is.

    ValueError for settings that cannot work, TypeError for weights or gradients that are sparse or not real. A gradient
    with a NaN or an infinity, or too large to square, raises FloatingPointError: on a CPU at once, before anything has
    changed; elsewhere, since looking makes the device wait, at the next refresh or when other weights get gradients,
    and until then such a gradient and those that come with it count as zero.

    processes: set it to the `World` of a training in several processes that all hold these weights and gradients, as
    `train` does: they share the work on large factors.
    Vyas et al. 2024, arXiv 2409.11321, algorithm 3.
    """

    processes = ALONE

    def __init__(
        self, params, lr: float = 3e-3, betas: tuple[float, float] = (0.95, 0.95), shampoo_beta: float | None = None,
        eps: float = 1e-8, weight_decay: float = 0.01, precondition_frequency: int = 10, max_precondition_dim: int = 10000,
    ):
        self._bundles: dict[int, tuple[tuple[int, ...], list[Bundle]]] = {}     # group: (ids of weights, bundles)
        super().__init__(params, dict(
            lr=lr, betas=betas, shampoo_beta=shampoo_beta, eps=eps, weight_decay=weight_decay,
            precondition_frequency=precondition_frequency, max_precondition_dim=max_precondition_dim,
        ))

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step. `closure`, if there is one, computes loss and gradients; what it returns is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            self._step()                                    # on CPU and CUDA as exact under autocast as without
        return loss

    def _step(self) -> None:
        work = [(group, bundle) for k, group in enumerate(self.param_groups) for bundle in self._bundled(k, group)]
        for _, bundle in work:
            bundle.gather()                                 # raises before any weight has moved
        due = []
        for group, bundle in work:
            beta1, beta2 = group["betas"]
            beta = beta2 if group["shampoo_beta"] is None else group["shampoo_beta"]
            for stack in bundle.stacks:
                stack.turned.copy_(project(stack.gradient, stack.Q, stack.GG, beta))
            if bundle.step > 0:                             # the first gradient makes the bases, and moves nothing
                bundle.adam(group["lr"], beta1, beta2, group["eps"], group["weight_decay"])
            if bundle.step % group["precondition_frequency"] == 0:
                due.append(bundle)
            bundle.step += 1
        refresh([stack for bundle in due for stack in bundle.stacks], self.processes)
        look_back(due)

    def _bundled(self, k: int, group: dict) -> list["Bundle"]:
        """The weights of group k that have a gradient, bundled by device, precision and age; kept while they stay."""
        params = [p for p in group["params"] if p.grad is not None and p.numel()]
        for p in params:
            if p.grad.layout != torch.strided:
                raise TypeError(f"SOAP needs dense gradients; that of shape {tuple(p.shape)} is {p.grad.layout}")
        ids = tuple(map(id, params))
        before, bundles = self._bundles.get(k, (None, []))
        if before != ids or not all(p in self.state for p in params):
            look_back(bundles)
            for p in params:
                if p not in self.state:
                    self.state[p] = new_state(p, group["max_precondition_dim"])
            kinds: dict[tuple, list[Tensor]] = {}
            for p in params:
                kinds.setdefault((p.device, p.dtype, int(self.state[p]["step"])), []).append(p)
            self._bundles[k] = ids, [Bundle(same, self.state) for same in kinds.values()]
        return self._bundles[k][1]

    def add_param_group(self, param_group: dict) -> None:
        """Add weights with settings of their own. Bad ones raise ValueError or TypeError, and nothing is added."""
        super().add_param_group(param_group)
        try:
            check(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over what `state_dict()` gave, each number as precise as it was: the base class casts to the weight's.

        ValueError if it is not the state of a SOAP of these weights; then nothing has changed.
        """
        if not all("precondition_frequency" in group for group in state_dict["param_groups"]):
            raise ValueError("this is not the state of a SOAP; make the optimizer that it belongs to")
        for group in state_dict["param_groups"]:
            check({**group, "params": []})
        weights = [p for group in self.param_groups for p in group["params"]]
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        saved = [(p, state_dict["state"][key]) for p, key in zip(weights, keys) if key in state_dict["state"]]
        for p, state in saved:
            if not fits(state, p):
                raise ValueError(f"this is not the state of these weights: that of shape {tuple(p.shape)} does not fit")
        super().load_state_dict(state_dict)
        for p, state in saved:
            self.state[p] = {
                name: value.to("cpu" if name == "step" else p.device, copy=True) for name, value in state.items()
            }

    def __setstate__(self, state: dict) -> None:            # of a copy, or after loading: bundle anew
        super().__setstate__(state)
        self._bundles = {}


def check(group: dict) -> None:
    """Raise ValueError for settings that cannot work, TypeError for weights that have no real gradient."""
    beta1, beta2 = group["betas"]
    for name, value, end in (
        ("lr", group["lr"], math.inf), ("weight_decay", group["weight_decay"], math.inf),
        ("betas[0]", beta1, 1), ("betas[1]", beta2, 1), ("shampoo_beta", group["shampoo_beta"] or 0.0, 1),
    ):
        if not 0 <= value < end:
            raise ValueError(f"{name} must be in [0, {end}), got {value}")
    if not torch.finfo(torch.float32).tiny < group["eps"] < math.inf:
        raise ValueError(f"eps must be above 0 in float32, got {group['eps']}: no gradient would mean a step of 0/0")
    for name in ("precondition_frequency", "max_precondition_dim"):
        if not isinstance(group[name], int) or group[name] < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more, got {group[name]}")
    for p in group["params"]:
        if not p.is_floating_point():
            raise TypeError(f"SOAP needs real weights in floating point; that of shape {tuple(p.shape)} is {p.dtype}")


def new_state(p: Tensor, max_dim: int) -> dict[str, Tensor]:
    """The state of a weight before its first gradient. A Q that is the identity says that its factor was always 0."""
    form: dict[str, Any] = dict(device=p.device, dtype=torch.float64 if p.dtype == torch.float64 else torch.float32)
    turned = (*p.shape[2:], *p.shape[:2])                   # as `project` leaves it
    state = dict(step=torch.tensor(0), exp_avg=torch.zeros(turned, **form), exp_avg_sq=torch.zeros(turned, **form))
    for k, d in enumerate(p.shape):
        if p.ndim > 1 and 1 < d <= max_dim:
            state |= {f"GG{k}": torch.zeros(d, d, **form), f"Q{k}": torch.eye(d, **form)}
    return state


def fits(state: dict, p: Tensor) -> bool:
    """Whether `state` can be that of p: every tensor of the right shape, and a factor and its basis both or neither."""
    whole = new_state(p.to("meta"), max(p.shape, default=0))
    sides = {name.strip("GQ") for name in state if name[0] in "GQ"}
    names = {name for name in whole if name[0] not in "GQ" or name.strip("GQ") in sides}
    return state.keys() == names and all(state[name].shape == whole[name].shape for name in names)


class Bundle:
    """Weights of one group, device, precision and age: their gradients and moments end to end, shape by shape."""

    def __init__(self, params: list[Tensor], state: dict):
        def kind(p):
            return p.shape, list(state[p])

        self.params = sorted(params, key=kind)
        self.step = torch.tensor(int(state[params[0]]["step"]))         # gradients seen so far
        self.exp_avg, self.exp_avg_sq = (
            torch.cat([state[p][name].flatten() for p in self.params]) for name in ("exp_avg", "exp_avg_sq")
        )
        self.gradient, self.turned = torch.empty_like(self.exp_avg), torch.empty_like(self.exp_avg)
        parts = self.gradient.split([p.numel() for p in self.params])
        self.gradients = [part.view(p.shape) for part, p in zip(parts, self.params)]
        self.looks = self.gradient.device.type == "cpu"     # at each gradient: elsewhere looking means waiting
        self.broken = torch.tensor(False, device=self.gradient.device)
        self.stacks, end = [], 0
        for (shape, _), same in groupby(self.params, kind):
            states = [state[p] for p in same]
            start, end = end, end + len(states) * math.prod(shape)
            flat = [one[start:end] for one in (self.gradient, self.turned, self.exp_avg, self.exp_avg_sq)]
            self.stacks.append(Stack(states, shape, *flat))
        for p in params:
            state[p]["step"] = self.step

    def gather(self) -> None:
        """Copy the gradients in, and see that their squares have a finite sum."""
        torch._foreach_copy_(self.gradients, [p.grad for p in self.params if p.grad is not None])
        energy = self.gradient @ self.gradient
        if not self.looks:
            self.broken |= ~energy.isfinite()
            self.gradient.masked_fill_(~energy.isfinite(), 0)
        elif not math.isfinite(energy):
            shapes = {tuple(g.shape) for g in self.gradients if not (g * g).sum().isfinite()}
            shapes = shapes or {tuple(g.shape) for g in self.gradients}         # only their sum is too large
            raise FloatingPointError(
                f"a gradient {NOT_FINITE}, of a weight of shape {' or '.join(map(str, shapes))}; nothing was changed"
            )

    def adam(self, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float) -> None:
        """An Adam step along the axes of the eigenbases, turned back, and decoupled weight decay."""
        step = int(self.step)
        size = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        self.exp_avg.lerp_(self.turned, 1 - beta1)
        self.exp_avg_sq.mul_(beta2).addcmul_(self.turned, self.turned, value=1 - beta2)
        torch.div(self.exp_avg, self.exp_avg_sq.sqrt().add_(eps), out=self.turned)
        for stack in self.stacks:
            stack.gradient.copy_(restore(stack.turned, stack.Q))
        torch._foreach_add_(self.params, self.gradients, alpha=-size)   # which hold the updates now
        if weight_decay:
            torch._foreach_mul_(self.params, 1 - lr * weight_decay)


class Stack:
    """n weights of one shape within a bundle: their parts of its flat tensors, and their factors, [n, d, d] each."""

    def __init__(self, states: list[dict], shape: torch.Size, gradient, turned, exp_avg, exp_avg_sq):
        self.gradient = gradient.view(-1, *shape)
        self.turned, self.exp_avg, self.exp_avg_sq = (
            flat.view(-1, *shape[2:], *shape[:2]) for flat in (turned, exp_avg, exp_avg_sq)
        )
        whole = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        whole |= {name: torch.stack([state[name] for state in states]) for name in states[0] if name[0] in "GQ"}
        self.GG, self.Q = ([whole.get(f"{name}{k}") for k in range(len(shape))] for name in ("GG", "Q"))
        for k, state in enumerate(states):                  # the state of a weight is views of what is worked on
            state.update({name: tensor[k] for name, tensor in whole.items()})

    def turn(self, new: list[tuple[Tensor, Tensor, Tensor] | None]) -> None:
        """Take bases over, with the turn from the old one to each and the order of its columns: the moments follow."""
        turns = [one and one[1] for one in new]
        self.exp_avg.copy_(project(self.exp_avg.movedim((-2, -1), (1, 2)), turns))
        place = torch.arange(len(self.exp_avg), device=self.exp_avg.device)     # of each number, in the flat tensor
        for k in (*range(2, len(new)), 0, 1):
            n, width = len(place), self.gradient.shape[k + 1]
            basis, _, order = new[k] or (None, None, torch.arange(width, device=place.device).expand(n, width))
            if basis is not None and (q := self.Q[k]) is not None:
                q.copy_(basis)
            place = place.unsqueeze(-1) * width + order.reshape(n, *[1] * (place.ndim - 1), width)
        self.exp_avg_sq.copy_(self.exp_avg_sq.flatten()[place])


def look_back(bundles: list[Bundle]) -> None:
    """Raise if a gradient since the last refresh was not finite, where they are not looked at one by one."""
    broken = [bundle.broken.zero_() for bundle in bundles if bundle.broken]
    if broken:
        raise FloatingPointError(f"since the last refresh a gradient {NOT_FINITE}; it was taken as zero")


def project(x: Tensor, Q: list[Tensor | None], GG: list[Tensor | None] | None = None, beta: float = 0.0) -> Tensor:
    """Into the eigenbases, one matrix per dimension and weight: [n, o, i, *kernel] → [n, *kernel, o, i].

    On the way each factor in GG, if given, takes x in: beta · GG + (1 - beta) · x xᵀ, x unfolded along its dimension.
    That product is the same whether the other dimensions have been turned or not. The kernel ends up in front since a
    small matrix is faster on the left of long rows than on the right of long columns.
    """
    if x.ndim < 3:                                          # no matrix, no basis
        return x
    n, o, i, *kernel = x.shape
    for k, width in enumerate((o, i)):                      # [n, o, i·kernel] → [n, i, kernel·o] → [n, kernel·o, i]
        x = x.reshape(n, width, -1)
        if GG and (factor := GG[k]) is not None:
            factor.baddbmm_(x, x.mT, beta=beta, alpha=1 - beta)
        x = x.mT if (q := Q[k]) is None else torch.bmm(x.mT, q)
    rows = 1
    for k, width in enumerate(kernel, 2):                   # [n, rows, width, columns]
        x = x.reshape(n, rows, width, -1)
        if GG and (factor := GG[k]) is not None:
            factor.lerp_((x @ x.mT).sum(1), 1 - beta)
        x = x if (q := Q[k]) is None else q.mT.unsqueeze(1) @ x
        rows *= width
    return x.reshape(n, *kernel, o, i)


def restore(x: Tensor, Q: list[Tensor | None]) -> Tensor:
    """Out of the eigenbases: [n, *kernel, o, i] → [n, o, i, *kernel]; undoes `project`."""
    if x.ndim < 3:
        return x
    n, *kernel, o, i = x.shape
    rows = math.prod(kernel)
    for width, q in zip(reversed(kernel), reversed(Q)):
        rows //= width
        x = x if q is None else q.unsqueeze(1) @ x.reshape(n, rows, width, -1)
    for q, width in ((Q[1], i), (Q[0], o)):
        x = x.reshape(n, -1, width).mT
        x = x if q is None else torch.bmm(q, x)
    return x.reshape(n, o, i, *kernel)


def refresh(stacks: list[Stack], processes: World) -> None:
    """Turn the bases of all stacks after their factors, those of one size in one call, and the moments with them."""
    sizes: dict[tuple, list[tuple[Stack, int]]] = {}
    new: dict[tuple[Stack, int], tuple[Tensor, Tensor, Tensor]] = {}
    for stack in stacks:
        for k, q in enumerate(stack.Q):
            if q is not None:
                sizes.setdefault((q.shape[-1], q.dtype, q.device), []).append((stack, k))
    for (_, _, device), same in sizes.items():
        home = "cpu" if device.type == "mps" else device    # MPS has no eigenvectors
        GG, Q = (torch.cat([getattr(stack, name)[k] for stack, k in same]).to(home) for name in ("GG", "Q"))
        counts = [len(stack.gradient) for stack, _ in same]
        share = processes if Q.shape[-1] >= SHARED_FROM else ALONE
        new |= zip(same, zip(*(one.to(device).split(counts) for one in share.spread(power_iteration, GG, Q))))
    for stack in stacks:
        if any(q is not None for q in stack.Q):
            stack.turn([new.get((stack, k)) for k in range(len(stack.Q))])


def power_iteration(GG: Tensor, Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step towards the eigenvectors of [N, k, k] factors: new Q, the turn from the old one to it, and the order
    in which the old columns went into it, by eigenvalue: [N, k]."""
    product = GG @ Q
    eigenvalues = (Q * product).sum(-2)                     # diag(Qᵀ GG Q)
    shift = SHIFT * torch.finfo(Q.dtype).eps * eigenvalues.amax(-1, keepdim=True)
    order = eigenvalues.argsort(dim=-1, descending=True, stable=True)
    product = (product + shift.unsqueeze(-1) * Q).take_along_dim(order.unsqueeze(-2), -1)
    new = torch.where((shift > 0).unsqueeze(-1), torch.linalg.qr(product).Q, Q)     # a factor of 0 turns nothing
    never = (Q.diagonal(dim1=-2, dim2=-1).abs() == 1).all(-1)       # the identity still: GG was always 0
    if never.any():
        new[never] = eigenbasis(GG[never])
    return new, torch.bmm(Q.mT, new), order


def eigenbasis(GG: Tensor) -> Tensor:
    """Eigenvectors of [N, k, k] positive semidefinite matrices, the largest eigenvalue first.

    Where GG is zero any orthonormal basis would do, and eigh returns what rounding made. There this takes the one that
    diagonalises diag(1 … k) within the null space: it moves little when GG moves little, and is the identity for GG = 0.
    """
    k = GG.shape[-1]
    values, vectors = (one.flip(-1) for one in torch.linalg.eigh(GG))
    seen = (values > k * torch.finfo(GG.dtype).eps * values[:, :1])[:, None]
    null = torch.eye(k, dtype=GG.dtype, device=GG.device) - (vectors * seen) @ vectors.mT
    ladder = torch.arange(1, k + 1, dtype=GG.dtype, device=GG.device) / k
    rest = torch.linalg.eigh((null * ladder) @ null).eigenvectors       # what is seen has eigenvalue 0 and comes first
    return torch.where(seen, vectors, rest)
