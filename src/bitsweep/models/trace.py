"""Who feeds whom: one forward pass on the meta device, followed tensor by tensor.

Names of modules differ between architectures and lie now and then (OPT's per-block
``final_layer_norm`` feeds fc1). What a layer's input was computed from does not. So each *node*
(linear, Conv1D, embedding, norm) stamps its output, every operation passes the stamps of its
inputs on, and a node finds on its input the stamps of the nodes nearest before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

ATTENTION = "<attention>"
"""The stamp that a softmax leaves: what carries it went through attention."""

Stamp = tuple[str, int]
"""Name of a node, and which slice of its output (0: all of it): a fused layer's parts differ."""

Stamps = dict[Stamp, bool]
"""Per stamp, whether a positive factor on the node's output channels passes through to here."""

# fmt: off
_PASSES = frozenset((
    "view", "reshape", "_unsafe_view", "_reshape_alias", "as_strided", "flatten", "transpose",
    "permute", "t", "expand", "repeat", "repeat_interleave", "unsqueeze", "squeeze", "clone",
    "contiguous", "_to_copy", "to", "copy", "alias", "detach", "lift_fresh", "slice", "select",
    "split", "split_with_sizes", "chunk", "unbind", "narrow", "index", "index_select", "gather",
    "cat", "stack", "dropout", "native_dropout", "neg", "relu",
))
"""Operations through which a factor per channel passes; ReLU for being positively homogeneous."""

_PRODUCTS = frozenset(("mul", "bmm", "mm", "matmul", "baddbmm", "addmm", "div"))
"""A factor on one operand passes, unless the other operand contains it as well."""

_PARTS = frozenset((
    "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "narrow", "index_select",
))
"""Operations that may take a part of a fused output."""
# fmt: on


@dataclass
class Trace:
    """Nodes in order of execution, and for each the stamps found on its input."""

    order: list[str] = field(default_factory=list)
    inputs: dict[str, Stamps] = field(default_factory=dict)


def is_norm(module: nn.Module) -> bool:
    """A leaf whose parameters are vectors: LayerNorm and every RMSNorm, by what they are."""
    weight = module._parameters.get("weight")
    return (
        weight is not None
        and weight.numel() > 1
        and next(module.children(), None) is None
        and all(parameter.ndim == 1 for parameter in module.parameters())
    )


def is_node(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding | Conv1D) or is_norm(module)


Rule = Callable[[str, list[Tensor], list[Stamps]], Stamps]
"""From an operation's name, its operands and their stamps to the stamps that it leaves."""


@torch.no_grad()
def trace(module: nn.Module, tokens: int = 4, rule: Rule | None = None) -> Trace:
    """Run ``module``, a causal language model on the meta device, once, and note who feeds whom.

    ``rule`` asks another question of the operations than whether a factor passes through them.
    """
    found = Trace()
    flow = _Flow(rule or _through)
    nodes = {name: child for name, child in module.named_modules() if is_node(child)}
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with _watched(nodes, found, flow), flow:
        module(input_ids=ids, use_cache=False)
    return found


@contextmanager
def _watched(nodes: dict[str, nn.Module], found: Trace, flow: _Flow) -> Iterator[None]:
    handles = []
    for name, node in nodes.items():

        def enter(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            if name not in found.inputs:  # a module that runs twice is placed where it runs first
                found.order.append(name)
                found.inputs[name] = join(map(flow.stamps, _tensors((args, kwargs))))

        def leave(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
            for tensor in _tensors(output):
                flow.stamp(tensor, {(name, 0): True})

        handles.append(node.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(node.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Flow(TorchDispatchMode):
    """Passes stamps from the inputs of each operation to its outputs."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self._rule = rule
        # Tensors are kept alive, so that an id is never used twice; on meta they weigh nothing.
        self._stamped: dict[int, tuple[Tensor, Stamps]] = {}
        self._parts = 0

    def stamps(self, tensor: Tensor) -> Stamps:
        return self._stamped.get(id(tensor), (tensor, {}))[1]

    def stamp(self, tensor: Tensor, stamps: Stamps) -> None:
        self._stamped[id(tensor)] = (tensor, stamps)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            # A meta tensor has no values. Models ask "is nothing padded, nothing packed?": yes.
            return True if args[0].dtype == torch.bool else 1
        output = func(*args, **(kwargs or {}))
        tensors = list(_tensors((args, kwargs)))
        operands = [self.stamps(tensor) for tensor in tensors]
        if not any(operands):
            return output
        in_place = name.endswith("_") and not name.endswith("__")
        operation = name.rstrip("_") if in_place else name
        stamps = self._rule(operation, tensors, operands)
        for tensor in _tensors(output):
            narrowed = operation in _PARTS and tensor.numel() < args[0].numel()
            self.stamp(tensor, self._part(stamps) if narrowed else stamps)
            if in_place and tensor._base is not None:  # x[..., :k] = y writes to x
                self.stamp(tensor._base, join([self.stamps(tensor._base), stamps]))
        return output

    def _part(self, stamps: Stamps) -> Stamps:
        self._parts += 1
        return {(name, self._parts): passes for (name, _), passes in stamps.items()}


def _through(operation: str, tensors: list[Tensor], operands: list[Stamps]) -> Stamps:
    """The stamps that ``operation`` leaves on its output, with whether a factor passes."""
    if "softmax" in operation:
        return {**stopped(join(operands)), (ATTENTION, 0): False}
    if "scaled_dot_product" in operation:
        query, key, value = operands[:3]
        return {**value, **stopped(join([query, key])), (ATTENTION, 0): False}
    if operation in _PASSES:
        return join(operands)
    if operation in _PRODUCTS:
        shared = {
            stamp for stamp in join(operands) if sum(stamp in stamps for stamps in operands) > 1
        }
        if operation == "div" and len(operands) == 2:
            shared |= set(operands[1])
        return {stamp: passes and stamp not in shared for stamp, passes in join(operands).items()}
    if operation == "add" and len(operands) == 2 and operands[0].keys() == operands[1].keys():
        return join(operands)
    return stopped(join(operands))


def join(operands: Iterable[Stamps]) -> Stamps:
    joined: Stamps = {}
    for stamps in operands:
        for stamp, passes in stamps.items():
            joined[stamp] = joined.get(stamp, True) and passes
    return joined


def stopped(stamps: Stamps) -> Stamps:
    return dict.fromkeys(stamps, False)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
