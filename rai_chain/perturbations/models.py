"""What changes data by parameters of its own."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import Parameter


@runtime_checkable
class PerturbationModel(Protocol):
    """A function of data with parameters to solve for, such as a `torch.nn.Module`.

    Example:
        >>> isinstance(AdditivePerturbation((2,)), PerturbationModel)
        True

    Source: the protocol of the same name in rai-toolbox.
    """

    def __call__(self, data: Tensor) -> Tensor:
        """The perturbed data, of the shape of the data, which are not written."""

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """What is solved for."""


class AdditivePerturbation(nn.Module):
    """Add a tensor to data: ``data + delta``.

    Args:
        data_or_shape: a tensor like which `delta` is made, or its shape.
        init_fn: writes the start into `delta`, which is zero before: see
            `uniform_like_l1_n_ball_`. None leaves it zero.
        device, dtype: of `delta`, where they are to be others than those of `data_or_shape`.
        delta_ndim: how many trailing dimensions `delta` has; a negative number leaves out as many
            leading ones, so that -1 makes one `delta` for a whole batch. The loss is then to be a
            mean over the batch, and `param_ndim` of an optimizer None.
        **init_fn_kwargs: passed on to `init_fn`.

    Attributes:
        delta: the only parameter.

    Raises:
        TypeError: `init_fn_kwargs` without `init_fn`.

    Example:
        >>> perturb = AdditivePerturbation(torch.ones(3, 2), delta_ndim=-1)
        >>> perturb.delta
        Parameter containing:
        tensor([0., 0.], requires_grad=True)
        >>> perturb(torch.ones(3, 2)).shape
        torch.Size([3, 2])

    Source: the class of the same name in rai-toolbox.
    """

    def __init__(
        self,
        data_or_shape: Tensor | Sequence[int],
        init_fn: Callable[..., None] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        delta_ndim: int | None = None,
        **init_fn_kwargs: Any,
    ) -> None:
        super().__init__()
        if init_fn is None and init_fn_kwargs:
            raise TypeError(f"`init_fn` must be given with its arguments  Got: {init_fn_kwargs}")
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        if isinstance(data_or_shape, Tensor):
            shape = tuple(data_or_shape.shape)
            like["device"] = device or data_or_shape.device
            like["dtype"] = dtype or data_or_shape.dtype
        else:
            shape = tuple(data_or_shape)
        if delta_ndim is not None:
            shape = shape[len(shape) - delta_ndim if delta_ndim >= 0 else -delta_ndim :]
        self.delta = Parameter(torch.zeros(shape, **like))
        if init_fn is not None:
            init_fn(self.delta, **init_fn_kwargs)

    def forward(self, data: Tensor) -> Tensor:
        """The data with `delta` added."""
        return data + self.delta
