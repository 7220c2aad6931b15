"""What every client does: digits, a small network, eight chains; and the loop by hand."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import rai_chain as rc
from rai_chain.optim import ChainedParamTransformingOptimizer, TopQGradientOptimizer

BATCH, SIZE = 64, 512
EPOCH = SIZE // BATCH  # steps
_IMAGES, _LABELS = load_digits(return_X_y=True)
IMAGES = torch.tensor(_IMAGES[:SIZE] / 16.0, dtype=torch.float32)
LABELS = torch.tensor(_LABELS[:SIZE])


def network() -> nn.Sequential:
    """The same start each time, whatever was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))


def data() -> TensorDataset:
    return TensorDataset(IMAGES, LABELS)


def batches() -> DataLoader:
    return DataLoader(data(), batch_size=BATCH)


def _drawn() -> Any:
    return partial(TopQGradientOptimizer, q=0.5, dq=0.3, generator=torch.Generator().manual_seed(3))


def _scheduled() -> Any:
    return rc.top_q(rc.linear_schedule(0.2, 0.9, 2 * EPOCH), param_ndim=None)


CHAINS: dict[str, Callable[[], list[Any]]] = {
    "plain": lambda: [rc.clamp(-0.05, 0.05)],
    "ema": lambda: [rc.ema(0.9)],
    "noise": lambda: [rc.add_noise(1e-3)],
    "error feedback": lambda: [rc.error_feedback(rc.top_q(0.9, param_ndim=None))],
    "scheduled q": lambda: [_scheduled()],
    "l2_ball": lambda: [rc.l2_ball(0.5)],
    "dq, generator": lambda: [_drawn()],
    "together": lambda: [
        rc.clamp(-0.5, 0.5),
        rc.error_feedback(_scheduled()),
        rc.ema(0.9),
        rc.add_noise(1e-4),
        _drawn(),
        rc.l2_ball(0.7),
    ],
}
SGD = {"InnerOpt": torch.optim.SGD, "lr": 0.1, "momentum": 0.9}


def optimizer(chain: str, params: Any, **inner: Any) -> Any:
    """The chain around an optimizer of torch's or anybody's."""
    return ChainedParamTransformingOptimizer(*CHAINS[chain](), params=params, **(inner or SGD))


class Apart:
    """The chain by hand around an optimizer: pure links, a draw of q of one's own, no adapter."""

    def __init__(
        self, chain: str, params: Any, inner: dict[str, Any], qs: Sequence[float] = ()
    ) -> None:
        self.params = list(params)
        options = {key: value for key, value in inner.items() if key != "InnerOpt"}
        self.inner = inner["InnerOpt"](self.params, **options)
        parts, rest = CHAINS[chain](), iter(qs)
        if qs:
            parts = [with_q(part, rest) for part in parts]
        self.balls = [part for part in parts if getattr(part, "phase", "") == "parameter"]
        self.parts = [part for part in parts if part not in self.balls]
        values = [p.detach() for p in self.params]
        self.states = [None if isinstance(p, partial) else p.init(values) for p in self.parts]

    @torch.no_grad()
    def step(self) -> None:
        grads = [p.grad for p in self.params]
        for i, part in enumerate(self.parts):
            if isinstance(part, partial):
                grads = [drawn(g, **part.keywords) for g in grads]
            else:
                values = [p.detach() for p in self.params]
                grads, self.states[i] = part.update(grads, self.states[i], values)
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g
        self.inner.step()
        for ball in self.balls:
            for p in self.params:
                p.copy_(rc.project_l2_ball(p, ball.hyperparams["epsilon"], param_ndim=-1))

    def zero_grad(self) -> None:
        self.inner.zero_grad()


def with_q(part: Any, qs: Iterator[float]) -> Any:
    """The same part with the next q, where it has one."""
    if isinstance(part, partial):
        return partial(part.func, **{**part.keywords, "q": next(qs)})
    return part.replace(q=next(qs)) if "q" in part.hyperparams else part


def drawn(grad: torch.Tensor, q: float, dq: float, generator: torch.Generator) -> torch.Tensor:
    low, high = max(0.0, q - dq), min(1.0, q + dq)
    u = torch.rand((), generator=generator).item()
    return rc.top_q(low + (high - low) * u).map(grad)


def falling(optimizer: Any) -> Any:
    """A scheduler of torch's, stepped after each step."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * EPOCH)


def by_hand(
    chain: str,
    *,
    epochs: int = 2,
    accumulate: int = 1,
    clip: float | None = None,
    scheduled: bool = False,
    bf16: bool = False,
    inner: dict[str, Any] = SGD,
    begin: Callable[[int, nn.Module, Any], None] = lambda epoch, net, optim: None,
    freeze: bool = False,
    adapter: Any = None,
) -> list[torch.Tensor]:
    """The parameters after the loop that a user writes without any client."""
    net = network()
    net[0].requires_grad_(not freeze)
    params = [p for p in net.parameters() if p.requires_grad]
    optim: Any = Apart(chain, params, inner) if adapter is None else adapter(chain, params, **inner)
    schedule = falling(getattr(optim, "inner", optim)) if scheduled else None
    seen = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
    for epoch in range(epochs):
        begin(epoch, net, optim)
        for i, (x, y) in enumerate(batches()):
            with seen:
                loss = cross_entropy(net(x), y)
            (loss / accumulate).backward()
            if (i + 1) % accumulate:
                continue
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optim.step()
            if schedule is not None:
                schedule.step()
            optim.zero_grad()
    begin(epochs, net, optim)
    return values(net)


def values(net: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in net.parameters()]


@dataclass
class Client:
    """How a client trains, `run(chain, folder, resume)`, and what the loop by hand does alike."""

    run: Callable[..., nn.Module]
    hand: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # chain -> why
    reference: Callable[[str], list[torch.Tensor]] | None = None  # in the place of `by_hand`

    def expected(self, chain: str) -> list[torch.Tensor]:
        return self.reference(chain) if self.reference else by_hand(chain, **self.hand)
