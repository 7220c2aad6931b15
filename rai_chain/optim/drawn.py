"""`top_q` whose q is drawn from a `torch.Generator`, tensor by tensor, as rai-toolbox draws it."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Generator, Tensor

from ..core.link import FunctionLink
from ..data.rows import UNSET, ParamNdim
from ..data.tree import Leaves, unflatten
from ..engine.run import Run, State
from ..engine.sharded.part import Part, check_alike
from ..engine.sharded.rounds import answer
from ..links.transforms import draw_q, top_q


class DrawnTopQ(FunctionLink):
    """`top_q` with a generator; the generator's state is saved with the optimizer.

    Args:
        values: of `q` and `dq`.
        generator: draws q; None for torch's default one, of which there is one only.
    """

    def __new__(
        cls, values: dict[str, Any], generator: Generator | None, param_ndim: Any = UNSET
    ) -> "DrawnTopQ":
        self: Any = super().__new__(cls, top_q, values, param_ndim, check=False)
        self.generator = torch.default_generator if generator is None else generator
        if not isinstance(self.generator, Generator):
            raise TypeError(f"`generator` must be a torch.Generator  Got: {generator!r}")
        return self  # type: ignore[no-any-return]

    generator: Generator

    def __reduce__(self) -> tuple[Any, ...]:
        own = None if self.generator is torch.default_generator else self.generator
        return DrawnTopQ, (self.values, own, self.param_ndim)

    def with_rows(self, param_ndim: ParamNdim) -> "DrawnTopQ":
        return DrawnTopQ(self.values, self.generator, param_ndim)

    def draws(self, values: dict[str, Any]) -> bool:
        return False  # not from a seed

    def evaluate(self, values: dict[str, Any], state: State) -> dict[str, Any]:
        alone = not dist.is_available() or not dist.is_initialized() or dist.get_world_size() < 2
        default = self.generator is torch.default_generator
        if default and not alone and self.definition.draw_is_needed(values):
            raise ValueError(
                "`generator` must be a torch.Generator with the same seed in each process, where "
                "there are several: else each drops other elements  Got: torch's default generator"
            )
        return super().evaluate(values, state)

    def apply(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any]
    ) -> tuple[Leaves, State]:
        if self.definition.draw_is_needed(values):
            seen = [leaf for leaf in leaves if leaf is not None]
            if self.rows(run).joined:
                values = {**values, "q": self._draw(values, seen[0]) if seen else 0.0, "dq": 0.0}
            else:
                drawn = [None if leaf is None else self._draw(values, leaf) for leaf in leaves]
                if run.sharded:
                    _check_alike(drawn, leaves)
                values = {**values, "q": unflatten(drawn, run.spec), "dq": 0.0}
        return super().apply(leaves, state, run, values)

    def _draw(self, values: dict[str, Any], leaf: Tensor) -> Any:
        u = torch.rand((), generator=self.generator, device=self.generator.device)
        q = draw_q(values["q"], values["dq"], u)
        return q.item() if q.is_cpu else q.to(leaf.device)


def _check_alike(drawn: list[Any], leaves: Leaves) -> None:
    """Refuse draws that differ between ranks, on all that share leaves."""
    by_mesh: dict[Any, list[Any]] = {}
    for q, leaf in zip(drawn, leaves, strict=True):
        if isinstance(leaf, Part):
            by_mesh.setdefault(leaf.spread.home.mesh, [leaf]).append(q)
    rule = "`generator` must have the same seed and state in each process"
    for leaf, *own in by_mesh.values():
        answer(check_alike(torch.tensor(own, dtype=torch.float64), leaf, rule))
