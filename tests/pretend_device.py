"""A device that pretends: CPU tensors that say they are on ``cuda:0`` and refuse what tensors of a GPU refuse.

An operator that meets such a tensor and an ordinary one raises, as CUDA does, but for the exceptions that CUDA makes
too: tensors without dimensions, indices, copies. So code that forgets to move a tensor fails on a machine without a
GPU. What only a GPU can show, its kernels' numbers, limits and missing types, this does not show.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda:0")
# These take an ordinary tensor beside one of the GPU: as the other side of a copy, or as indices of the first argument.
_COPIES = {"aten::copy_", "aten::_to_copy"}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_NO_NUMPY = (
    f"can't convert {GPU} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
)


class Pretending(Tensor):
    """A tensor of the pretended GPU around the one on the CPU that it computes with."""

    value: Tensor
    # To torch's own code it is on the CPU, without which automatic differentiation would look for a GPU.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value: Tensor) -> Pretending:
        self = Tensor._make_wrapper_subclass(
            cls, value.shape, value.stride(), value.storage_offset(), dtype=value.dtype, device="cpu"
        )
        self.value = value
        return self

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def numpy(self, *args: Any, **kwargs: Any):
        raise TypeError(_NO_NUMPY)

    def __array__(self, *args: Any, **kwargs: Any):
        raise TypeError(_NO_NUMPY)

    def tolist(self):
        return self.value.tolist()

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None) -> Pretending:
        return Pretending(self.value.new_tensor(data, dtype=dtype))

    def __repr__(self, **_: Any) -> str:
        return f"Pretending({self.value!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = Pretending(self.value.clone())
        return nn.Parameter(copy, self.requires_grad) if isinstance(self, nn.Parameter) else copy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        _refuse_mixing(func, args, kwargs)
        result = func(*tree_map(_value, args), **tree_map(_value, kwargs))
        if func._schema.is_mutable and not isinstance(result, list | tuple):
            # What was written to is what comes back, not a new tensor around the same value.
            written = [kwargs.get("out"), *args[:1]]
            return next(each for each in written if isinstance(each, Tensor))
        return tree_map(_wrap, result)


class PretendedGPU(TorchFunctionMode):
    """While it is active, ``cuda`` is a device that tensors can be made on, moved to and moved from."""

    def __enter__(self) -> PretendedGPU:
        # A module would take over the memory of a moved parameter and not its class.
        self.swapped = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        # Code that asks what the GPU can do gets the answer of an H100.
        self.capability = patch("torch.cuda.get_device_capability", lambda device=None: (9, 0))
        self.capability.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.capability.stop()
        torch.__future__.set_swap_module_params_on_conversion(self.swapped)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (Tensor.cuda, Tensor.cpu, Tensor.to, Tensor.type_as):
            return _move(func, args, kwargs)
        if func is one_hot and isinstance(args[0], Pretending):
            # It makes a tensor of its own, on what it takes for the device of the first.
            return Pretending(func(args[0].value, *args[1:], **kwargs))
        if func is torch.histc and isinstance(args[0], Pretending):
            args = (args[0].float(), *args[1:])  # a GPU counts integers too
        if _is_gpu(kwargs.get("device")):
            wants_gradient = kwargs.pop("requires_grad", False)
            made = _wrap(func(*tree_map(_value, args), **{**kwargs, "device": "cpu"}))
            return made.requires_grad_(wants_gradient)
        return func(*args, **kwargs)


def pretend(model: nn.Module) -> nn.Module:
    """Move a model to the pretended GPU, in place, as ``model.to("cuda")`` does."""
    with PretendedGPU():
        return model.to("cuda")


def on_cpu(tensor: Tensor) -> Tensor:
    """The values of a tensor of either device."""
    return _value(tensor.detach())


def _refuse_mixing(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    name = func._schema.name
    if name in _COPIES:
        return
    if name in _INDEXING and isinstance(args[0], Pretending):
        args = (args[0], *args[2:])
    for each in tree_flatten((args, kwargs))[0]:
        if isinstance(each, Tensor) and not isinstance(each, Pretending) and each.dim() > 0:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {GPU} and cpu! "
                f"(in {name})"
            )


def _move(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    tensor, *others = args
    like = next((each for each in (*others, *kwargs.values()) if isinstance(each, Tensor)), None)
    if func is Tensor.cuda or func is Tensor.cpu:
        to_gpu, result = func is Tensor.cuda, tensor
    elif like is not None:
        to_gpu, result = isinstance(like, Pretending), tensor.to(like.dtype)
    else:
        device, dtype, *_ = torch._C._nn._parse_to(*others, **kwargs)
        to_gpu = isinstance(tensor, Pretending) if device is None else _is_gpu(device)
        result = tensor if dtype is None else tensor.to(dtype)
    if to_gpu == isinstance(result, Pretending):
        return result
    return _Crossing.apply(result) if to_gpu else _Return.apply(result)


class _Crossing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return Pretending(tensor.detach().clone())

    @staticmethod
    def backward(ctx, gradient):
        return gradient.value


class _Return(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return tensor.value.detach().clone()

    @staticmethod
    def backward(ctx, gradient):
        return Pretending(gradient)


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _value(each: Any) -> Any:
    return each.value if isinstance(each, Pretending) else each


def _wrap(each: Any) -> Any:
    return Pretending(each) if isinstance(each, Tensor) and not isinstance(each, Pretending) else each
