"""A pipeline as a communication hook of DistributedDataParallel: what it keeps is what travels."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .core.chain import chain
from .core.link import FunctionLink, Link
from .core.pipeline import GradientTransformation
from .data.rows import TREE

__all__ = ["PipelineState", "pipeline_hook"]


class PipelineState:
    """A pipeline with its state for each parameter, as `pipeline_hook` needs it.

    Args:
        tx: a pipeline of gradients. Each parameter goes through it alone, before ranks share it.
        named_parameters: those of the model.
        process_group: that of the model; None: the default one.

    Raises:
        ValueError: a link of the pipeline sees all parameters together, or is no link of gradients.

    Example:
        >>> import rai_chain as rc
        >>> model = torch.nn.Linear(2, 1)
        >>> state = PipelineState(rc.error_feedback(rc.top_k(1)), model.named_parameters())
        >>> list(state.state_dict())
        ['weight', 'bias']
    """

    def __init__(
        self,
        tx: GradientTransformation,
        named_parameters: Iterable[tuple[str, Tensor]],
        process_group: Any = None,
    ) -> None:
        for link in _links(tx):
            whole = isinstance(link, FunctionLink) and (
                link.definition.scope == "tree" or link.param_ndim == TREE
            )
            if whole or link.phase != "gradient":
                raise ValueError(
                    f"`tx` must transform the gradient of each parameter alone  Got: {link!r}"
                )
        named = [(name, p) for name, p in named_parameters if p.requires_grad]
        self.tx, self.group = chain(tx), process_group
        self.places = {p: (i, name) for i, (name, p) in enumerate(named)}
        # Each is the last leaf of a tree of its own: its place is what draws depend on.
        self.states = {n: self.tx.init(_tree(i, p.detach())) for i, (n, p) in enumerate(named)}

    def update(self, param: Tensor, grad: Tensor) -> Tensor:
        """The gradient of a parameter through the pipeline, which goes on with its state."""
        i, name = self.places[param]
        out, self.states[name] = self.tx.update(_tree(i, grad), self.states[name])
        new: Tensor = out[-1]
        return new

    def state_dict(self) -> dict[str, Any]:
        """The states by the names of the parameters: those of this rank, which others have not."""
        return dict(self.states)

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Go on with what `state_dict` returned on this rank."""
        if states.keys() != self.states.keys():
            odd = sorted(states.keys() ^ self.states.keys())
            raise ValueError(f"`states` must have one for each parameter  Got: {odd} on one side")
        self.states = dict(states)


def pipeline_hook(
    state: PipelineState,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """The mean over ranks of gradients that each rank sends through a pipeline first.

    What travels is the index and the value of each element that is not zero, from each rank to all
    others, where that is less than for a sum of the gradients themselves: with more ranks, fewer
    elements have to be left.

    Args:
        state: made once, on each rank, of the same pipeline and model.
        bucket: of DistributedDataParallel.

    Example:
        >>> import rai_chain as rc
        >>> model = torch.nn.Linear(100, 1)
        >>> tx = rc.error_feedback(rc.top_q(0.99, at_least=1))
        >>> state = PipelineState(tx, model.named_parameters())
        >>> # ddp = DistributedDataParallel(model); ddp.register_comm_hook(state, pipeline_hook)

    Source: deep gradient compression (Lin et al. 2018), for any pipeline.
    """
    buffer, group = bucket.buffer(), state.group
    pairs = zip(bucket.parameters(), bucket.gradients(), strict=True)
    flat = torch.cat([state.update(p, g).reshape(-1) for p, g in pairs])
    world, index = dist.get_world_size(group), flat.nonzero()[:, 0]
    most = torch.tensor([len(index)], device=flat.device)
    dist.all_reduce(most, dist.ReduceOp.MAX, group)
    room, every = 2 * (int(most) // 2 + 1), flat.new_empty(0)  # even: views stay aligned
    if world * room * (4 + flat.element_size()) < 2 * flat.numel() * flat.element_size():
        padding = index.new_zeros(room - len(index))
        sent = torch.cat([flat[index], padding.to(flat.dtype)]), torch.cat([index, padding]).int()
        packed = torch.cat([x.view(torch.uint8) for x in sent])
        every = packed.new_empty(world, len(packed))
        work = dist.all_gather_single(every.view(-1), packed, group, async_op=True)
        buffer.zero_()
    else:
        work = dist.all_reduce(buffer.copy_(flat), group=group, async_op=True)

    def mean(_: Any) -> Tensor:
        for part in every:
            values, places = part[: -4 * room].view(flat.dtype), part[-4 * room :].view(torch.int32)
            buffer.index_add_(0, places, values)
        result: Tensor = buffer.div_(world)
        return result

    future: torch.futures.Future[Tensor] = work.get_future().then(mean)
    return future


def _tree(i: int, leaf: Tensor) -> list[Tensor | None]:
    return [*[None] * i, leaf]


def _links(tx: GradientTransformation) -> Iterator[Link]:
    for link in chain(tx).links:
        yield link
        for inner in link.inners.values():
            yield from _links(inner)
