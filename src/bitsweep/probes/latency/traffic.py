"""Bytes of weights that a decode step can not do without: what a packed engine saves.

Counted are the tensors that a runner holds, as it holds them: codes with their padding, scales,
zeros, the head, norms and biases in full, of embeddings the rows that are looked up, one a
sequence. A tensor that several modules share is read once. Not counted are the key-value cache and
activations: the same for all engines of one dtype, they grow with batch and prompt, so that at
large ones a step reads more than this says, never less.

Runtimes of whole graphs do not show what they hold. Theirs is what the graph declares: codes and
zeros as they are stored, scales and everything else in the dtype that the engine computes in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitsweep.engines import Engine, Runner
from bitsweep.linear import Quantized
from bitsweep.models import Model


def step_bytes(each: Runner, engine: Engine, model: Model, batch: int) -> int | None:
    """Bytes that ``each``, which ``engine`` made of ``model``, reads in a step of ``batch``
    sequences; None of an engine that does not say what it computes in.
    """
    module = getattr(each, "module", None)
    if isinstance(module, nn.Module):
        return of_module(module, batch)
    compute = getattr(engine, "COMPUTE", None)
    return None if compute is None else of_graph(model, compute, batch)


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


def of_graph(model: Model, compute: torch.dtype, batch: int) -> int:
    """The same for a graph that computes in ``compute``."""
    whole: dict[int, int] = {}
    rows = 0
    for child in model.module.modules():
        held = {
            id(tensor): tensor.numel() * compute.itemsize
            for tensor in child._parameters.values()
            if tensor is not None
        }
        if isinstance(child, Quantized):
            stored = child.quant.nbytes()
            stored["scale"] = child.quant.params["scale"].numel() * compute.itemsize
            held[id(child.quant)] = sum(stored.values())
        if hasattr(child, "num_embeddings"):
            rows += batch * sum(held.values()) // child.num_embeddings
        else:
            whole |= held
    return sum(whole.values()) + rows


def nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _place(tensor: Tensor) -> tuple[int, int]:
    """Equal for tensors that are the same numbers in memory."""
    try:
        return tensor.data_ptr(), nbytes(tensor)
    except RuntimeError:  # a layout of oneDNN has no address
        return id(tensor), nbytes(tensor)
