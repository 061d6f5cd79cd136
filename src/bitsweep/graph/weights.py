"""Codes and parameters of a quantized layer as the initializers of an ONNX graph.

Tensors are made when a file is written or a session reads them, and not kept: a graph costs no
second copy of its model.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch
from torch import Tensor

from bitsweep.packing import pack_rows
from bitsweep.spec import PER_CHANNEL, PER_TENSOR
from bitsweep.tensor import QuantTensor

SIGNED = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
UNSIGNED = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
KINDS = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.uint8: ir.DataType.UINT8,
    torch.int8: ir.DataType.INT8,
    torch.int32: ir.DataType.INT32,
    torch.int64: ir.DataType.INT64,
}


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
            packed = halves(values.reshape(-1)).numpy()
            return ir.PackedTensor(packed, dtype, shape=ir.Shape(shape), name=name)
        return ir.Tensor(values.numpy(), dtype, name=name)

    lazy = ir.LazyTensor(tensor, dtype, ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=lazy)
    graph.register_initializer(value)
    return value


def constant(graph: ir.Graph, name: str, values: Tensor) -> ir.Value:
    """Numbers that are at hand, as a constant of ``graph``."""
    return initializer(graph, name, tuple(values.shape), KINDS[values.dtype], lambda: values)


def halves(codes: Tensor) -> Tensor:
    """Codes of 4 bits along the last axis, two a byte, the first in the low half; uint8."""
    return pack_rows(codes.to(torch.uint8) & 15, 4)


def unsigned(quant: QuantTensor) -> Tensor:
    """The codes from 0 up, uint8 ``(out, in)``, in the order of the groups.

    A pruned weight has the code that stands for 0.
    """
    codes = quant.codes
    if quant.mask is not None:
        codes = torch.where(quant.mask, codes, _zeros(quant))
    return codes if quant.permutation is None else codes[:, quant.permutation]


def codes(quant: QuantTensor) -> Tensor:
    """The codes as QDQ has them: int8 about 0 on a symmetric grid, else uint8."""
    return centred(unsigned(quant), quant) if quant.spec.symmetric else unsigned(quant)


def centred(codes: Tensor, quant: QuantTensor) -> Tensor:
    """``codes`` uint8 less half their range, int8."""
    return (codes.to(torch.int16) - 2 ** int(quant.spec.bits - 1)).to(torch.int8)


def _zeros(quant: QuantTensor) -> Tensor:
    """The code of 0 at each weight, ``(out, in)`` in the columns' own order."""
    if quant.spec.symmetric:
        return torch.tensor(2 ** int(quant.spec.bits - 1), dtype=torch.uint8)
    columns = quant.shape[1]
    group = torch.arange(columns) // size(quant)
    if quant.permutation is not None:
        group = torch.empty_like(group).index_copy_(0, quant.permutation, group)
    return params(quant, "zero")[:, group]


def params(quant: QuantTensor, name: str) -> Tensor:
    """``scale`` or ``zero`` ``(out, groups)``; one of the whole tensor is repeated for each row."""
    rows, columns = quant.shape
    return quant.params[name].expand(rows, quant.spec.groups(columns))


def size(quant: QuantTensor) -> int:
    """Columns of a group; all of them where a row, or the tensor, is one."""
    return quant.shape[1] if whole(quant) else quant.spec.group_size


def single(quant: QuantTensor) -> bool:
    """Whether a row has one group."""
    return quant.spec.groups(quant.shape[1]) == 1


def whole(quant: QuantTensor) -> bool:
    """Whether the spec says one group a row, or one for all rows."""
    return quant.spec.group_size in (PER_CHANNEL, PER_TENSOR)
