"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner. This file needs only PyTorch: copy it into any project.

Vyas et al. 2024, arXiv 2409.11321, algorithm 3. A stack of n weights of one shape is one tensor [n, o, i, *kernel].
"""

import math
from collections.abc import Callable, Iterable
from itertools import groupby

import torch
from torch import Tensor


class SOAP(torch.optim.Optimizer):
    """Adam in a slowly turning basis: the eigenvectors of the gradients' second moments.

    A weight of d₁ × d₂ × … has, for each dimension, a factor GG of d × d: the running mean of g gᵀ, g unfolded along
    that dimension. The columns of Q are its eigenvectors. The first step of a weight makes both and moves nothing; each
    later one is Adam's along the axes of Q. Every `precondition_frequency` steps a power iteration turns Q after GG:
    the first moment turns along, the second is permuted into the new order of the eigenvalues. Weights of less than two
    dimensions get plain Adam. State is float64 for weights in float64, else float32.

    lr, betas, weight_decay (decoupled): as in AdamW.  shampoo_beta: decay of GG; None: betas[1].
    eps: added to the root of the second moment before its bias is corrected, as in the authors' code.
    max_precondition_dim: larger dimensions get no factor. Read at the first gradient of a weight.

    ValueError for settings that cannot work. On a CPU, FloatingPointError for a gradient that is NaN, infinite or too
    large to square, before anything changes; on a GPU, which would have to wait to know, the weights become NaN.
    """

    _live: list = []  # the weights in the bundles, with their groups
    bundles: list["Bundle"] = []

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
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step. `closure`, if given, computes loss and gradients; return what it returns."""
        with torch.enable_grad():
            loss = closure() if closure else None
        self.gather()  # raises before anything changes
        self.count()
        self.move()
        return loss

    def gather(self) -> None:
        """Copy the gradients in. This and `move` are all that the device does of a step: a CUDA graph can hold them."""
        self._bundle()
        for bundle in self.bundles:
            bundle.gather()

    def count(self) -> tuple[bool, ...]:
        """Count a step and set what `move` needs of it; return, for each bundle, if its bases are to be refreshed."""
        return tuple(bundle.count(**bundle.group) for bundle in self.bundles)

    @torch.no_grad()
    def move(self) -> None:
        """Move the weights, and turn the bases that are due."""
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            for bundle in self.bundles:
                bundle.move(**bundle.group)
            refresh([stack for b in self.bundles if b.due and not b.first for stack in b.stacks])

    def _bundle(self) -> None:
        """Bundle weights with a gradient by group, device, precision and age, if they are not those of before."""
        live = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None and p.numel()]
        if len(live) == len(self._live) and all(p is q and a is b for (a, p), (b, q) in zip(live, self._live)):
            return
        kinds: dict[tuple, tuple[dict, list[Tensor]]] = {}
        for group, p in live:
            self.state[p] = self.state[p] or new_state(p, group["max_precondition_dim"])
            kind = (id(group), p.device, p.dtype, int(self.state[p]["step"]))
            kinds.setdefault(kind, (group, []))[1].append(p)
        self.bundles = [Bundle(same, self.state, group) for group, same in kinds.values()]
        self._live = live

    def add_param_group(self, param_group: dict) -> None:
        """Add weights with settings of their own. ValueError for bad ones; then nothing is added."""
        check(self.defaults | param_group)
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over a `state_dict()` of the same weights, in its own precision."""
        super().load_state_dict(state_dict)
        self._live = []
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for p, key in zip([p for group in self.param_groups for p in group["params"]], keys):
            if key in state_dict["state"]:  # the base class casts it to the precision of the weight
                state = {name: x.to(p.device, copy=True) for name, x in state_dict["state"][key].items()}
                self.state[p] = state | dict(step=state["step"].cpu())


def check(group: dict) -> None:
    """Raise ValueError for settings that cannot work."""
    if not all(0 <= group[name] < math.inf for name in ("lr", "weight_decay")):
        raise ValueError(f"lr and weight_decay must be in [0, inf), got {group['lr']} and {group['weight_decay']}")
    if not all(0 <= beta < 1 for beta in (*group["betas"], group["shampoo_beta"] or 0.0)):
        raise ValueError(f"betas and shampoo_beta must be in [0, 1), got {group['betas']} and {group['shampoo_beta']}")
    if not torch.finfo(torch.float32).tiny < group["eps"] < math.inf:
        raise ValueError(f"eps must be above 0 in float32, got {group['eps']}: no gradient would mean a step of 0/0")
    for name in ("precondition_frequency", "max_precondition_dim"):
        if not isinstance(group[name], int) or group[name] < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more, got {group[name]}")


def new_state(p: Tensor, max_dim: int) -> dict[str, Tensor]:
    """Make the state of a weight before its first gradient: moments laid out as `project` leaves x, and no turn."""
    form: dict = dict(device=p.device, dtype=torch.float64 if p.dtype == torch.float64 else torch.float32)
    first, second = (torch.zeros((*p.shape[2:], *p.shape[:2]), **form) for _ in range(2))
    state = dict(step=torch.tensor(0), exp_avg=first, exp_avg_sq=second)
    for k, d in enumerate(p.shape):
        if p.ndim > 1 and 1 < d <= max_dim:
            state |= {f"GG{k}": torch.zeros(d, d, **form), f"Q{k}": torch.eye(d, **form)}
    return state


class Bundle:
    """Weights of one group, device, precision and age: gradients and moments end to end, and a stack for each shape."""

    def __init__(self, params: list[Tensor], state: dict, group: dict):
        kinds = {p: (p.shape, list(state[p])) for p in params}
        self.params, self.group = sorted(params, key=kinds.__getitem__), group
        self.step = torch.tensor(int(state[params[0]]["step"]))  # gradients seen so far
        flat = {name: torch.cat([state[p][name].flatten() for p in self.params]) for name in ("exp_avg", "exp_avg_sq")}
        flat |= {name: torch.empty_like(flat["exp_avg"]) for name in ("turned", "gradient")}
        self.exp_avg, self.exp_avg_sq, self.turned, self.gradient = flat.values()
        self.size, self.decay = self.gradient.new_ones(()), self.gradient.new_ones(())  # of this step
        self.each: Callable[[list], Iterable] = iter  # goes through the stacks; in a CUDA graph, in parallel
        self.stacks, end = [], 0
        for (shape, names), same in groupby(self.params, kinds.__getitem__):
            states = [state[p] for p in same]
            start, end = end, end + len(states) * shape.numel()
            stack = {name: torch.stack([one[name] for one in states]) for name in names if name[0] in "GQ"}
            stack |= {name: x[start:end].view(-1, *shape[2:], *shape[:2]) for name, x in flat.items()}
            for k, one in enumerate(states):  # the state of a weight is views of what is worked on
                one.update({name: stack[name][k] for name in names if name != "step"}, step=self.step)
            self.stacks.append(stack | {"gradient": self.gradient[start:end].view(-1, *shape)})
        self.gradients = [gradient for stack in self.stacks for gradient in stack["gradient"]]

    def gather(self) -> None:
        """Copy the gradients in; on a CPU, see that their squares have a finite sum."""
        torch._foreach_copy_(self.gradients, [p.grad for p in self.params if p.grad is not None])
        if self.gradient.is_cpu and not (self.gradient @ self.gradient).isfinite():
            raise FloatingPointError("a gradient was NaN, infinite or too large to square; nothing was changed")

    def count(self, lr, betas, weight_decay, precondition_frequency, **_) -> bool:
        """Count a step. The first gradient makes the bases, and moves nothing."""
        (beta1, beta2), step = betas, int(self.step)
        self.first, self.due = step == 0, step % precondition_frequency == 0
        if not self.first:
            self.size.fill_(lr * math.sqrt(1 - beta2**step) / (1 - beta1**step))
            self.decay.fill_(1 - lr * weight_decay)
        self.step += 1
        return self.due

    def move(self, betas, shampoo_beta, eps, **_) -> None:
        """Take an Adam step along the axes of the eigenbases, turned back, and decay the weights."""
        beta1, beta2 = betas
        for stack in self.each(self.stacks):
            beta = beta2 if shampoo_beta is None else shampoo_beta
            stack["turned"].copy_(project(stack["gradient"], stack, "Q", beta))
        if self.first:
            for stack in self.stacks:
                for k in [name[1:] for name in stack if name[0] == "Q"]:
                    stack["Q" + k].copy_(eigenbasis(solvable(stack["GG" + k])))
            return
        self.exp_avg.lerp_(self.turned, 1 - beta1)
        self.exp_avg_sq.mul_(beta2).addcmul_(self.turned, self.turned, value=1 - beta2)
        torch.div(self.exp_avg, self.exp_avg_sq.sqrt().add_(eps), out=self.turned)
        for stack in self.each(self.stacks):
            stack["gradient"].copy_(restore(stack["turned"], stack))  # now it holds the update
        self.gradient.mul_(self.size)
        torch._foreach_sub_(self.params, self.gradients)
        torch._foreach_mul_(self.params, self.decay)


def refresh(stacks: list[dict[str, Tensor]]) -> None:
    """Turn the bases of all stacks after their factors, those of one size in one call, and the moments with them."""
    sizes: dict[tuple, list[tuple[dict[str, Tensor], str]]] = {}
    for stack in stacks:
        for name, Q in [(name, Q) for name, Q in stack.items() if name[0] == "Q"]:
            sizes.setdefault((Q.shape[-1], Q.dtype, Q.device), []).append((stack, name[1:]))
    for (_, _, device), same in sizes.items():
        GG, Q = (solvable(torch.cat([stack[name + k] for stack, k in same])) for name in ("GG", "Q"))
        parts = (x.split([len(stack["Q" + k]) for stack, k in same]) for x in power_iteration(GG, Q))
        for (stack, k), basis, turn, order in zip(same, *parts):
            stack["Q" + k].copy_(basis)
            stack["turn" + k], stack["order" + k] = turn.to(device), order.to(device)
    for stack in [stack for stack in stacks if stack["exp_avg"].ndim > 2]:
        for name, matrices in (("exp_avg", "turn"), ("exp_avg_sq", "order")):
            stack[name].copy_(project(stack[name].movedim((-2, -1), (1, 2)), stack, matrices))


def solvable(x: Tensor) -> Tensor:
    """Return a tensor where its eigenvectors can be computed: MPS has none."""
    return x.cpu() if x.is_mps else x


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
    new = orthonormal((product + shift * Q).take_along_dim(order, -1))
    new = torch.where(new.isfinite().all((-2, -1), keepdim=True) & (shift > 0), new, Q)  # a factor of 0 turns nothing
    return new, Q.mT @ new, torch.zeros_like(Q).scatter_(-2, order, 1)


def orthonormal(x: Tensor) -> Tensor:
    """Make the columns of [N, d, d] orthonormal, from the first to the last: the Q of QR.

    On a GPU, QR takes one matrix after the other, and Cholesky twice in float64 all of them in one call (Yamamoto et
    al. 2015); it squares the condition, for which float64 leaves no room if x is in float64.
    """
    if not x.is_cuda or x.dtype == torch.float64:
        return torch.linalg.qr(x).Q
    return cholesky_qr(cholesky_qr(x.double())).to(x.dtype)


def cholesky_qr(x: Tensor) -> Tensor:
    """Make the columns of [N, d, d] nearly orthonormal: x L⁻ᵀ with L Lᵀ = xᵀ x. Not finite where x is singular."""
    L = torch.linalg.cholesky_ex(x.mT @ x).L
    return torch.linalg.solve_triangular(L, x.mT, upper=False).mT


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
