"""Bytes of weights that a decode step can not do without: what a packed engine saves.

Counted are the tensors that a runner holds, as it holds them: codes with their padding, scales,
zeros, the head, norms and biases in full, of embeddings the rows that are looked up, one a
sequence. A tensor that several modules share is read once. Not counted are the key-value cache and
activations: the same for all engines of one dtype, they grow with batch and prompt, so that at
large ones a step reads more than this says, never less.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bitsweep.engines import Runner


def step_bytes(each: Runner, batch: int) -> int | None:
    """Bytes that ``each`` reads in a step of ``batch`` sequences; None where it does not say.

    A runner of a whole graph says it by a method ``step_bytes(batch)`` of its own.
    """
    known: Any = each
    if hasattr(known, "step_bytes"):
        return int(known.step_bytes(batch))
    module = getattr(each, "module", None)
    return of_module(module, batch) if isinstance(module, nn.Module) else None


def of_module(module: nn.Module, batch: int) -> int:
    """The rule above for the tensors of ``module``."""
    whole: dict[tuple[int, int], int] = {}
    rows = 0
    for child in module.modules():
        height = getattr(child, "num_embeddings", None)
        for tensor in (*child._parameters.values(), *child._buffers.values()):
            if tensor is None or not tensor.numel():
                continue
            if height is not None and tensor.shape[0] == height:
                rows += batch * nbytes(tensor) // height
            else:
                whole[_place(tensor)] = nbytes(tensor)
    return sum(whole.values()) + rows


def nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _place(tensor: Tensor) -> tuple[int, int]:
    """Equal for tensors that are the same numbers in memory."""
    try:
        return tensor.data_ptr(), nbytes(tensor)
    except RuntimeError:  # a layout of oneDNN has no address
        return id(tensor), nbytes(tensor)
