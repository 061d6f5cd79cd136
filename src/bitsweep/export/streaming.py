"""A checkpoint larger than memory, quantized and written tensor by tensor.

    reason = refuses(prepared, artifacts)          # why this point needs the whole model, or None
    stream(prepared, artifacts, print, container, shards)

What decides is known without weights (the plan, from the configuration; where each tensor lies,
from the tables of the safetensors files), so the model is never built. A matrix is read some rows
at a time, in plain reads: no more of the file is mapped or held. Rows that share no parameter are
rounded each by itself, so codes, files and hashes are those of the ordinary export, to the last
bit. What is held at once is one matrix as codes, a byte each, and what its container makes of
them: of a matrix of 16-bit numbers 1.25 times its bytes at most, however many layers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bitsweep import models
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.export import Container, containers
from bitsweep.export.checkpoint import Shards, kept, stored_dtype
from bitsweep.models import Model, files
from bitsweep.models.shards import DTYPES, Entry, table
from bitsweep.prepared import Prepared
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor

AT_ONCE = 2**18
"""Numbers that are read and rounded at a time: a MiB of float32, which a cache holds."""

DENSE = "hf-dense"


@runtime_checkable
class Rowwise(Protocol):
    """A method that needs no more of a matrix than the rows at hand."""

    def skip_rows(self, spec: QuantSpec) -> str | None:
        """Why rows of ``spec`` need the whole matrix (with the key to change), or None."""
        ...

    def rows(self, weight: Tensor, spec: QuantSpec) -> QuantTensor:
        """Some rows ``(n, in)`` float32 of a matrix as they become in the whole of it."""
        ...


class Reader:
    """The tensors of safetensors files, a part at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.places: dict[str, tuple[Path, Entry]] = {
            name: (path, entry) for path in paths for name, entry in table(path).items()
        }

    def shape(self, name: str) -> tuple[int, ...] | None:
        """None where there is no such tensor."""
        return self.places[name][1].shape if name in self.places else None

    def dtype(self, name: str) -> torch.dtype | None:
        """None where the file packs its numbers in a way that torch does not."""
        return DTYPES.get(self.places[name][1].dtype)

    def tensor(self, name: str) -> Tensor:
        """All of ``name``, read once into memory of its own."""
        (path, entry), dtype = self.places[name], self.dtype(name)
        assert dtype is not None
        data = np.fromfile(path, np.uint8, entry.nbytes, offset=entry.begin)
        return torch.from_numpy(data).view(dtype).view(entry.shape)

    def parts(self, name: str, width: int = 1) -> Iterator[Tensor]:
        """All of ``name`` as rows ``(n, width)`` in its own dtype, about :data:`AT_ONCE` each."""
        (path, entry), dtype = self.places[name], self.dtype(name)
        assert dtype is not None
        row = width * dtype.itemsize
        step = row * max(1, AT_ONCE // width)
        with path.open("rb") as file:
            file.seek(entry.begin)
            for place in range(entry.begin, entry.end, step):
                data = np.fromfile(file, np.uint8, min(step, entry.end - place))
                yield torch.from_numpy(data).view(dtype).view(-1, width)


def takes(name: str) -> bool:
    """Whether the format ``name`` is written a tensor at a time: graphs are not."""
    return name in containers() or name == DENSE


def refuses(prepared: Prepared, artifacts: Artifacts) -> str | None:
    """Why the point needs its whole model in memory, with the key to change; None where not."""
    point, plan = prepared.point, prepared.plan
    if prepared.source.random_weights:
        return f"model={prepared.source.name}: its random weights are in no file"
    for group, steps in (("transforms", point.transforms), ("recover", point.recover)):
        for name in steps:
            return f"{group}=[{name}] works on the whole model"
    if point.calibrated:
        return f"method={point.method_name}: it runs the model on calibration text"
    if plan.kv is not None:
        return f"kv.bits={plan.kv.bits:g}: the cache is none of a checkpoint"
    if not isinstance(point.method, Rowwise):
        return f"method={point.method_name} looks at whole matrices; method=rtn takes rows"
    model = models.skeleton(prepared.source, artifacts)
    for name, spec in plan.layers.items():
        reason = point.method.skip_rows(spec.weight)
        if reason is not None:
            return reason
        if model.layers[name].kind == "conv1d":
            return f"{name} is a conv1d, whose file has columns where others have rows"
    reader = _reader(prepared, artifacts)
    for name, place, value in _tensors(prepared, model, artifacts):
        if reader.shape(place) != tuple(value.shape) or reader.dtype(place) is None:
            return f"{name} is not in its files under this name, in this shape, as plain numbers"
    return None


def stream(
    prepared: Prepared,
    artifacts: Artifacts,
    progress: Callable[[str], None],
    container: Container | None,
    shards: Shards,
) -> int:
    """Add every tensor of the exported checkpoint to ``shards``; bytes of those that hold codes.

    ``container`` None writes what the codes stand for, in the dtype of the model. Only after
    :func:`refuses` said None; ``container`` must take every layer of the plan.

    Raises:
        UserError: a weight is not finite (``model.path``).
    """
    plan, held = prepared.plan, 0
    model, reader = models.skeleton(prepared.source, artifacts), _reader(prepared, artifacts)
    found = files.locate(prepared.source, True, artifacts)
    stored = stored_dtype(found, prepared.source.path)
    for name, place, value in _tensors(prepared, model, artifacts):
        layer, _, key = name.rpartition(".")
        progress(f"{name}, {shards.bytes / 2**20:.0f} MiB written")
        if key != "weight" or layer not in plan.layers:
            _copy(shards, name, reader, place, value, stored)
            continue
        rows, before = _rounded(prepared, reader, layer, place, value.dtype), shards.bytes
        if container is None:
            dense = (quant.dequantize(value.dtype) for quant in rows)
            shards.add_parts(name, value.dtype, value.shape, dense)
        else:
            quant, inputs = gather(rows, value.shape), plan.layers[layer].input
            for key, tensor in container.tensors(layer, quant, inputs).items():
                shards.add(key, tensor)
            del quant, tensor
        held += shards.bytes - before
    return held


def unfilled(prepared: Prepared, artifacts: Artifacts) -> Model:
    """The quantized model without values, on the meta device: what it is, and how large."""
    point, model = prepared.point, models.skeleton(prepared.source, artifacts).copy()
    return point.method(model, prepared.plan, Calibration(model, point.calibration, artifacts))


def gather(rows: Iterator[QuantTensor], shape: Sequence[int]) -> QuantTensor:
    """The matrix ``(out, in)`` whose rows, in their order, ``rows`` are.

    Room is made once, for all: small pieces that are kept between large ones that are not would
    leave holes, and the process would grow by those.
    """
    begin, codes, params = 0, torch.empty(0), dict[str, Tensor]()
    for part in rows:
        if not begin:
            codes = part.codes.new_empty((shape[0], *part.codes.shape[1:]))
            params = {k: v.new_empty((shape[0], *v.shape[1:])) for k, v in part.params.items()}
        end = begin + len(part.codes)
        codes[begin:end] = part.codes
        for name, value in part.params.items():
            params[name][begin:end] = value
        begin, spec = end, part.spec
    return QuantTensor(codes, params, spec)


def _rounded(
    prepared: Prepared, reader: Reader, layer: str, place: str, dtype: torch.dtype
) -> Iterator[QuantTensor]:
    """The matrix at ``place``, computed with in ``dtype``, as codes: some rows at a time."""
    method, spec = prepared.point.method, prepared.plan.layers[layer].weight
    assert isinstance(method, Rowwise)
    shape = reader.shape(place)
    assert shape is not None
    for part in reader.parts(place, shape[1]):
        weight = part.to(dtype).float()
        if not bool(weight.sum().isfinite()) and not bool(weight.isfinite().all()):
            raise UserError(
                f"model.path={prepared.source.path}: {layer} has weights that are NaN or infinite; "
                "use a sound checkpoint"
            )
        yield method.rows(weight, spec)


def _copy(
    shards: Shards, name: str, reader: Reader, place: str, value: Tensor, stored: torch.dtype
) -> None:
    """A tensor that is not quantized, as :func:`~bitsweep.export.checkpoint.kept` has it."""
    own, dtype = reader.dtype(place), value.dtype
    if own == stored and dtype.itemsize > stored.itemsize:
        dtype = stored  # widened to compute with, it is what it was
    elif dtype.is_floating_point and dtype.itemsize > stored.itemsize:
        whole = torch.cat([part.to(dtype) for part in reader.parts(place)]).view(value.shape)
        shards.add(name, kept(whole, stored))
        return
    shards.add_parts(name, dtype, value.shape, (part.to(dtype) for part in reader.parts(place)))


def _tensors(
    prepared: Prepared, model: Model, artifacts: Artifacts
) -> Iterator[tuple[str, str, Tensor]]:
    """Each tensor of the checkpoint to be, where its numbers come from, and what it is like.

    A tied head is left out; one that is untied now comes from where the embedding does.
    """
    ends = {layer.role: f"{layer.name}.weight" for layer in model.layers.values()}
    tied = models.skeleton(replace(prepared.source, untie=False), artifacts).tied
    for name, value in model.module.state_dict().items():
        if name == ends["head"] and tied:
            if not model.tied:
                yield name, ends["embedding"], value
        else:
            yield name, name, value


def _reader(prepared: Prepared, artifacts: Artifacts) -> Reader:
    found = files.locate(prepared.source, True, artifacts)
    return Reader(found.weights(prepared.source.path))
