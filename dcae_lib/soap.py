"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner. This file needs only PyTorch: copy it into any project.

Vyas et al. 2024, arXiv 2409.11321, algorithm 3. A stack of n weights of one shape is one tensor [n, o, i, *kernel].
"""

import math
import operator
from itertools import groupby

import torch
from torch import Tensor


class SOAP(torch.optim.Optimizer):
    """Adam in a slowly turning basis: the eigenvectors of the gradients' second moments.

    A weight of d₁ × d₂ × … has, for each dimension, a factor GG of d × d: the running mean of g gᵀ, g unfolded along
    that dimension. The columns of Q are its eigenvectors. The first step of a weight makes both and moves nothing; each
    later one is Adam's along the axes of Q. Every `precondition_frequency` steps a power iteration turns Q after GG:
    the first moment turns along, the second is permuted into the new order of the eigenvalues. Weights of less than two
    dimensions get plain Adam. State is float64 for weights in float64, else float32; it may be edited.

    lr, betas, weight_decay (decoupled): as in AdamW.  shampoo_beta: decay of GG; None: betas[1].
    eps: added to the root of the second moment before its bias is corrected, as in the authors' code.
    max_precondition_dim: larger dimensions get no factor. Read at the first gradient of a weight.

    ValueError for settings that cannot work, TypeError for weights or gradients that are sparse, sharded or not real,
    FloatingPointError for a gradient that is NaN, infinite or too large to square: on a CPU before anything changes; on
    a GPU, which would have to wait, before the next refresh or change of weights; till then that step's count as zero.
    """

    _seen: list = []  # of each weight in the bundles: group, weight, dtype, device and state
    _bundles: list[tuple[int, "Bundle"]] = []

    def __init__(
        self,
        params,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        max_precondition_dim: int = 10000,
    ):
        settings = {name: value for name, value in locals().items() if name not in ("self", "params", "__class__")}
        super().__init__(params, check(settings))

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step. `closure`, if given, computes loss and gradients; return what it returns."""
        with torch.enable_grad():
            loss = closure() if closure else None
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            before, work = self._bundles, [(bundle, self.param_groups[k]) for k, bundle in self._bundle()]
            for bundle, _ in work:
                bundle.gather()  # raises before any weight has moved
            due = [bundle for bundle, group in work if bundle.step % group["precondition_frequency"] == 0]
            look = bool(due) or before is not self._bundles  # not at each step: a GPU would have to wait
            if look and [bundle.broken.zero_() for _, bundle in before if bundle.broken]:
                raise FloatingPointError("since the last refresh a gradient was not finite; it was taken as zero")
            for bundle, group in work:
                bundle.move(**group)
            refresh([stack for bundle in due for stack in bundle.stacks])
        return loss

    def _bundle(self) -> list[tuple[int, "Bundle"]]:
        """Bundle weights with a gradient by group, device, precision and age; anew when they or their state change."""
        weights = [(k, p) for k, group in enumerate(self.param_groups) for p in group["params"]]
        live = [(k, p) for k, p in weights if p.grad is not None and p.numel()]
        for _, p in live:
            if hasattr(p, "device_mesh") or p.grad.layout != torch.strided or not p.is_floating_point():
                kind = "a DTensor" if hasattr(p, "device_mesh") else f"{p.grad.layout}, {p.dtype}"
                raise TypeError(f"SOAP needs dense real gradients, got {kind} of {tuple(p.shape)}")
        seen = [x for k, p in live for x in (k, p, p.dtype, p.get_device(), *self.state[p].values())]
        same = len(seen) == len(self._seen) and all(map(operator.is_, seen, self._seen))
        if not same or any(int(step) != bundle.step for _, bundle in self._bundles for step in bundle.steps):
            for p, own in self.state.items():  # copies: views of a weight that has left would keep its bundle alive
                self.state[p] = {name: x.to(**home(p, name), copy=True) for name, x in own.items()}
            kinds: dict[tuple, list[Tensor]] = {}
            for k, p in live:
                self.state[p] = self.state[p] or new_state(p, self.param_groups[k]["max_precondition_dim"])
                kinds.setdefault((k, p.device, p.dtype, int(self.state[p]["step"])), []).append(p)
            self._bundles = [(k, Bundle(same, self.state)) for (k, *_), same in kinds.items()]
            self._seen = [x for k, p in live for x in (k, p, p.dtype, p.get_device(), *self.state[p].values())]
        return self._bundles

    def add_param_group(self, param_group: dict) -> None:
        """Add weights with settings of their own. ValueError for bad ones; then nothing is added."""
        settings = check({name: x for name, x in (self.defaults | param_group).items() if name != "params"})
        super().add_param_group(param_group | settings)

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over a `state_dict()` in its own precision. ValueError, and no change, if it is not of such weights."""
        saved: dict[Tensor, dict[str, Tensor]] = {}
        look = self.register_load_state_dict_pre_hook(lambda _, given: saved.update(self._checked(given)))
        take = self.register_load_state_dict_post_hook(lambda _: self.state.update(saved), prepend=True)
        with look, take:  # within the hooks of others, which may change what is loaded
            super().load_state_dict(state_dict)

    def _checked(self, state_dict: dict) -> dict[Tensor, dict[str, Tensor]]:
        """Copy the state of each weight out of a `state_dict()`: the base class casts it to the weights' precision."""
        for group in state_dict["param_groups"]:
            if not {"shampoo_beta", "precondition_frequency", "max_precondition_dim"} <= group.keys():
                raise ValueError("this is not the state of a SOAP; make the optimizer that it belongs to")
            check(group)
        weights = [p for group in self.param_groups for p in group["params"]]
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        saved = {p: state_dict["state"][key] for p, key in zip(weights, keys) if key in state_dict["state"]}
        for p, state in saved.items():
            fits = new_state(p.to("meta"), math.inf)
            fits = {name: x for name, x in fits.items() if name[0] not in "GQ" or f"Q{name.strip('GQ')}" in state}
            if state.keys() != fits.keys() or any(state[name].shape != x.shape for name, x in fits.items()):
                raise ValueError(f"this is not the state of these weights: that of shape {tuple(p.shape)} does not fit")
            saved[p] = {name: x.to(home(p, name)["device"], copy=True) for name, x in state.items()}
        return saved


def check(group: dict) -> dict:
    """Return settings, with NumPy's and PyTorch's numbers as Python's. Raise ValueError for those that cannot work."""
    group = {name: x.tolist() if hasattr(x, "tolist") else x for name, x in group.items()}
    group["betas"] = tuple(map(float, group["betas"]))
    values = {**group, "betas[0]": group["betas"][0], "betas[1]": group["betas"][1]}
    for name in ("lr", "weight_decay", "betas[0]", "betas[1]", "shampoo_beta"):
        end = 1 if "beta" in name else math.inf
        if not 0 <= (0 if values[name] is None else values[name]) < end:
            raise ValueError(f"{name} must be in [0, {end}), got {values[name]}")
    if not torch.finfo(torch.float32).tiny < group["eps"] < math.inf:
        raise ValueError(f"eps must be above 0 in float32, got {group['eps']}: no gradient would mean a step of 0/0")
    for name in ("precondition_frequency", "max_precondition_dim"):
        if not isinstance(group[name], int) or group[name] < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more, got {group[name]}")
    return group


def new_state(p: Tensor, max_dim: float) -> dict[str, Tensor]:
    """Make the state of a weight before its first gradient. A Q that is the identity says: its factor was always 0."""
    first, second = (torch.zeros((*p.shape[2:], *p.shape[:2]), **home(p)) for _ in range(2))  # as `project` leaves x
    state = dict(step=torch.tensor(0), exp_avg=first, exp_avg_sq=second)
    for k, d in enumerate(p.shape):
        if p.ndim > 1 and 1 < d <= max_dim:
            state |= {f"GG{k}": torch.zeros(d, d, **home(p)), f"Q{k}": torch.eye(d, **home(p))}
    return state


def home(p: Tensor, name: str = "") -> dict:
    """Return the device and the precision of a part of a weight's state."""
    if name == "step":
        return dict(device="cpu", dtype=torch.int64)
    return dict(device=p.device, dtype=torch.float64 if p.dtype == torch.float64 else torch.float32)


class Bundle:
    """Weights of one group, device, precision and age: gradients and moments end to end, and a stack for each shape."""

    def __init__(self, params: list[Tensor], state: dict):
        kinds = {p: (p.shape, list(state[p])) for p in params}
        self.params = sorted(params, key=kinds.__getitem__)
        self.steps = [state[p]["step"] for p in params]  # gradients seen so far
        self.step = int(self.steps[0])
        flat = {name: torch.cat([state[p][name].flatten() for p in self.params]) for name in ("exp_avg", "exp_avg_sq")}
        flat |= {name: torch.empty_like(flat["exp_avg"]) for name in ("turned", "gradient")}
        self.exp_avg, self.exp_avg_sq, self.turned, self.gradient = flat.values()
        self.broken = torch.tensor(False, device=self.gradient.device)
        self.looks = self.gradient.is_cpu  # at every gradient; elsewhere looking means waiting
        self.stacks, end = [], 0
        for (shape, names), same in groupby(self.params, kinds.__getitem__):
            states = [state[p] for p in same]
            start, end = end, end + len(states) * shape.numel()
            stack = {name: torch.stack([one[name] for one in states]) for name in names if name[0] in "GQ"}
            stack |= {name: x[start:end].view(-1, *shape[2:], *shape[:2]) for name, x in flat.items()}
            for k, one in enumerate(states):  # the state of a weight is views of what is worked on
                one.update({name: stack[name][k] for name in names if name != "step"})
            self.stacks.append(stack | {"gradient": self.gradient[start:end].view(-1, *shape)})
        self.gradients = [gradient for stack in self.stacks for gradient in stack["gradient"]]

    def gather(self) -> None:
        """Copy the gradients in, and see that their squares have a finite sum."""
        torch._foreach_copy_(self.gradients, [p.grad for p in self.params if p.grad is not None])
        finite = (self.gradient @ self.gradient).isfinite()
        if not self.looks:
            self.broken |= ~finite
            self.gradient.masked_fill_(~finite, 0)
        elif not finite:
            broken = [g for g in self.gradients if not (g * g).sum().isfinite()]
            shapes = " or ".join({str(tuple(g.shape)) for g in broken or self.gradients})  # or: only their sum is
            what = "a gradient held a NaN or an infinity, or was too large to square"
            raise FloatingPointError(f"{what}, of a weight of shape {shapes}; nothing was changed")

    def move(self, lr, betas, shampoo_beta, eps, weight_decay, **_) -> None:
        """Take an Adam step along the axes of the eigenbases, turned back, and decay the weights."""
        (beta1, beta2), step = betas, self.step
        for stack in self.stacks:
            beta = beta2 if shampoo_beta is None else shampoo_beta
            stack["turned"].copy_(project(stack["gradient"], stack, "Q", beta))
        self.step += 1
        torch._foreach_add_(self.steps, 1)
        if step == 0:  # the first gradient makes the bases, and moves nothing
            return
        self.exp_avg.lerp_(self.turned, 1 - beta1)
        self.exp_avg_sq.mul_(beta2).addcmul_(self.turned, self.turned, value=1 - beta2)
        torch.div(self.exp_avg, self.exp_avg_sq.sqrt().add_(eps), out=self.turned)
        for stack in self.stacks:
            stack["gradient"].copy_(restore(stack["turned"], stack))  # now it holds the update
        torch._foreach_add_(self.params, self.gradients, alpha=-lr * math.sqrt(1 - beta2**step) / (1 - beta1**step))
        if weight_decay:
            torch._foreach_add_(self.params, self.params, alpha=-lr * weight_decay)


def refresh(stacks: list[dict[str, Tensor]]) -> None:
    """Turn the bases of all stacks after their factors, those of one size in one call, and the moments with them."""
    sizes: dict[tuple, list] = {}
    new: list[tuple[dict, dict]] = [(stack, {}) for stack in stacks]  # and the turns and orders of its bases
    for stack, own in new:
        for name in [name for name in stack if name[0] == "Q"]:
            q = stack[name]
            sizes.setdefault((q.shape[-1], q.dtype, q.device), []).append((stack, own, name[1:]))
    for (_, _, device), same in sizes.items():
        home = "cpu" if device.type == "mps" else device  # MPS has no eigenvectors
        GG, Q = (torch.cat([stack[name + k] for stack, _, k in same]).to(home) for name in ("GG", "Q"))
        parts = (x.to(device).split([len(stack["Q" + k]) for stack, _, k in same]) for x in power_iteration(GG, Q))
        for (stack, own, k), basis, turn, order in zip(same, *parts):
            stack["Q" + k].copy_(basis)
            own.update({"turn" + k: turn, "order" + k: order})
    for stack, own in [(stack, own) for stack, own in new if own]:
        for name, matrices in (("exp_avg", "turn"), ("exp_avg_sq", "order")):
            stack[name].copy_(project(stack[name].movedim((-2, -1), (1, 2)), own, matrices))


def project(x: Tensor, stack: dict[str, Tensor], matrices: str, beta: float = 1.0) -> Tensor:
    """Multiply dimension k of x by matrix k of a stack, such as "Q0": [n, o, i, *kernel] → [n, *kernel, o, i].

    On the way GG ← beta · GG + (1 - beta) · x xᵀ if beta < 1, x unfolded along that dimension. The kernel comes to the
    front, since a small matrix is fastest on the left of long rows.
    """
    if x.ndim < 3:  # no matrix, no basis
        return x
    n, o, i, *kernel = x.shape
    for k, width in enumerate((o, i)):  # [n, o, i·kernel] → [n, i, kernel·o] → [n, kernel·o, i]
        x = x.reshape(n, width, -1)
        if beta < 1 and (factor := stack.get(f"GG{k}")) is not None:
            factor.baddbmm_(x, x.mT, beta=beta, alpha=1 - beta)
        x = x.mT if (q := stack.get(f"{matrices}{k}")) is None else torch.bmm(x.mT, q)
    for k, width in enumerate(kernel, 2):
        x = x.reshape(n, math.prod(kernel[: k - 2]), width, -1)
        if beta < 1 and (factor := stack.get(f"GG{k}")) is not None:
            factor.lerp_((x @ x.mT).sum(1), 1 - beta)
        x = x if (q := stack.get(f"{matrices}{k}")) is None else q.mT.unsqueeze(1) @ x
    return x.reshape(n, *kernel, o, i)


def restore(x: Tensor, stack: dict[str, Tensor]) -> Tensor:
    """Turn out of the eigenbases: [n, *kernel, o, i] → [n, o, i, *kernel]; undoes `project`."""
    if x.ndim < 3:
        return x
    n, *kernel, o, i = x.shape
    for k, width in enumerate(kernel, 2):
        x = x.reshape(n, math.prod(kernel[: k - 2]), width, -1)
        x = x if (q := stack.get(f"Q{k}")) is None else q.unsqueeze(1) @ x
    for k, width in ((1, i), (0, o)):
        x = x.reshape(n, -1, width).mT
        x = x if (q := stack.get(f"Q{k}")) is None else torch.bmm(q, x)
    return x.reshape(n, o, i, *kernel)


def power_iteration(GG: Tensor, Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step from Q towards the eigenvectors of GG: the new Q, the turn to it, the order of the old columns, [N, d, d].

    GG + shift · I has the same eigenvectors, and with it rounding errors do not turn directions without a gradient; a
    shift of fewer epsilons would not do.
    """
    product = GG @ Q
    eigenvalues = (Q * product).sum(-2)  # diag(Qᵀ GG Q)
    order = eigenvalues.argsort(dim=-1, descending=True, stable=True).unsqueeze(-2)
    shift = 1000 * torch.finfo(Q.dtype).eps * eigenvalues.amax(-1)[:, None, None]
    new = torch.linalg.qr((product + shift * Q).take_along_dim(order, -1)).Q
    new = torch.where(shift > 0, new, Q)  # a factor of 0 turns nothing
    never = (Q.diagonal(dim1=-2, dim2=-1).abs() == 1).all(-1)  # the identity still: GG was always 0
    if never.any():
        new[never] = eigenbasis(GG[never])
    return new, Q.mT @ new, torch.zeros_like(Q).scatter_(-2, order, 1)


def eigenbasis(GG: Tensor) -> Tensor:
    """Compute the eigenvectors of [N, d, d] positive semidefinite matrices, the largest eigenvalue first.

    In the null space, where eigh returns what rounding made, take those of diag(1 … d) in it: they are stable.
    """
    d = GG.shape[-1]
    values, vectors = (one.flip(-1) for one in torch.linalg.eigh(GG))
    seen = (values > d * torch.finfo(GG.dtype).eps * values[:, :1])[:, None]
    null = torch.eye(d, dtype=GG.dtype, device=GG.device) - (vectors * seen) @ vectors.mT
    ladder = torch.arange(1, d + 1, dtype=GG.dtype, device=GG.device) / d
    rest = torch.linalg.eigh((null * ladder) @ null).eigenvectors  # what is seen has eigenvalue 0 and comes first
    return torch.where(seen, vectors, rest)
