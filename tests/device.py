"""A device that is simulated on the CPU: it says who waits for it and what is copied to it.

Its tensors are no CPU's to the library, so that what runs is what would on a GPU, but for kernels
of one kind of GPU. An operation on them that would make the host wait is noted, as are copies of
what lies on the host: a CUDA graph can hold neither.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import rai_chain.data.plain
import rai_chain.data.tree
from rai_chain.kernels import boxed, norms, select, sets

PLACE = torch.device("privateuseone:0")
KERNELS = {
    "keep_mask": select._keep_mask,
    "norm": norms._norm,
    "project": sets.project,
    "ball_in_box": boxed._nearest,
}
WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "masked_select"}
WAITS |= {"_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave"}
WAITS |= {"_linalg_svd", "_linalg_eigh", "_linalg_check_errors"}  # the last is asked by most
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
# Those that take a tensor of 0 dimensions on the host as a number; `where` copies it.
ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "add_", "sub_", "mul_", "div_", "pow"}
ARITHMETIC |= {"maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge"}
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
FREE |= {"detach", "alias", "_unsafe_view"}


def register():
    """Make torch know such a device, for the rest of the process."""
    _setup_privateuseone_for_python_backend()
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=)` copies where we see it
    ordinary = rai_chain.data.plain.ORDINARY | {There}
    rai_chain.data.plain.ORDINARY = rai_chain.data.tree.ORDINARY = ordinary


class There(Tensor):
    """A tensor on the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, own):
        made = Tensor._make_wrapper_subclass(
            cls,
            own.shape,
            strides=own.stride(),
            storage_offset=own.storage_offset(),
            dtype=own.dtype,
            device=PLACE,
        )
        made.own = own
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of `Device`")

    def data_ptr(self):
        return self.own.data_ptr()

    def untyped_storage(self):
        return self.own.untyped_storage()

    def __repr__(self):
        return f"There({self.own!r})"


def there(tree):
    """A copy on the device."""
    return tree_map(lambda x: There(x.clone()) if isinstance(x, Tensor) else x, tree)


def here(tree):
    """What is on the device, on the host."""
    return tree_map(lambda x: x.own if isinstance(x, There) else x, tree)


class Device(TorchDispatchMode):
    """Runs what is on the device, and notes it.

    Attributes:
        launches: the operations that would be a kernel each.
        waits: those that the host would wait for.
        copies: those that would copy from the host.
    """

    def __init__(self):
        super().__init__()
        self.launches, self.waits, self.copies = [], [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if func.namespace == "rai_chain":
            with self:
                return KERNELS[name](*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        mine = [x for x in given if isinstance(x, There)]
        others = [x for x in given if not isinstance(x, There)]
        place = kwargs.get("device")
        made_here = not mine if place is None else torch.device(place).type != PLACE.type
        written = name == "copy_" and not isinstance(args[0], There)
        by_bool = name in INDEXED and any(x is not None and x.dtype is torch.bool for x in args[1])
        if mine and (made_here or written or by_bool or name in WAITS):
            self.waits.append(name)
        numbers = mine and name in ARITHMETIC and not any(x.ndim for x in others)
        if others and not (made_here or written or numbers):
            if name not in ("where", "copy_", "_to_copy"):
                raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
            self.copies.append(name)
        if not (made_here or func.is_view or name in FREE):
            self.launches.append(name)
        if place is not None:
            kwargs = {**kwargs, "device": "cpu"}
        result = func(*here(args), **here(kwargs))
        if made_here or written:
            return result
        known = {id(x.own): x for x in mine}  # written in place
        return tree_map(
            lambda x: known.get(id(x), There(x)) if isinstance(x, Tensor) else x, result
        )
