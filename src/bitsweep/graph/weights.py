"""Codes and parameters of a quantized layer as the initializers of an ONNX graph.

Tensors are made when a file is written or a session reads them, and not kept: a graph costs no
second copy of its model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from bitsweep.tensor import QuantTensor

SIGNED = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
UNSIGNED = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}


def initializer(
    graph: ir.Graph,
    name: str,
    shape: tuple[int, ...],
    dtype: ir.DataType,
    make: Callable[[], Tensor],
) -> ir.Value:
    """A constant of ``graph``, named ``name``; one that is there already is shared.

    ``make`` gives the numbers: of ``dtype``, or of 4 bits as ``uint8`` or ``int8`` codes.
    """
    if name in graph.initializers:
        return graph.initializers[name]

    def tensor() -> ir.TensorProtocol:
        values = make().contiguous()
        if dtype.bitwidth == 4:
            return ir.PackedTensor(halves(values).numpy(), dtype, shape=ir.Shape(shape), name=name)
        return ir.Tensor(values.numpy(), dtype, name=name)

    lazy = ir.LazyTensor(tensor, dtype, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=lazy)
    graph.register_initializer(value)
    return value


def halves(codes: Tensor) -> Tensor:
    """Codes of 4 bits, two a byte in the order of memory, the first in the low half; uint8."""
    flat = codes.reshape(-1).to(torch.uint8) & 15
    if len(flat) % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[0::2] | (flat[1::2] << 4)


def codes(quant: QuantTensor) -> Tensor:
    """``(out, in)`` in the order of the groups: int8 about 0 when symmetric, else uint8.

    A pruned weight has the code that stands for 0.
    """
    found = quant.codes
    if quant.mask is not None:
        found = torch.where(quant.mask, found, _zeros(quant))
    if quant.permutation is not None:
        found = found[:, quant.permutation]
    if quant.spec.symmetric:
        return (found.to(torch.int16) - 2 ** int(quant.spec.bits - 1)).to(torch.int8)
    return found


def _zeros(quant: QuantTensor) -> Tensor:
    """The code of 0 at each weight, ``(out, in)`` in the columns' own order."""
    if quant.spec.symmetric:
        return torch.tensor(2 ** int(quant.spec.bits - 1), dtype=torch.uint8)
    rows, columns = quant.shape
    size = quant.spec.group_size if quant.spec.group_size > 0 else columns
    group = torch.arange(columns) // size
    if quant.permutation is not None:
        group = torch.empty_like(group).index_copy_(0, quant.permutation, group)
    return quant.params["zero"].expand(rows, -1)[:, group]


def params(quant: QuantTensor, name: str) -> Tensor:
    """``scale`` or ``zero`` ``(out, groups)``, the scale of a whole tensor repeated for each row."""
    rows, columns = quant.shape
    return quant.params[name].expand(rows, quant.spec.groups(columns))


def constant(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    """A small constant of ``graph``."""
    return initializer(
        graph,
        name,
        values.shape,
        ir.DataType.from_numpy(values.dtype),
        lambda: torch.tensor(values),
    )
