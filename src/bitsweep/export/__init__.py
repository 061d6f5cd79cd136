"""A point leaves the house: checkpoints that other runtimes load.

A :class:`Container` is how a family of checkpoint files holds quantized weights, one a file, found
on disk (``export/compressed_tensors.py`` has the class ``CompressedTensors``): tensors a layer at a
time, so that a checkpoint larger than memory is written shard by shard, and back again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from bitsweep.models import Layer
from bitsweep.spec import LayerSpec, Plan
from bitsweep.tensor import QuantTensor


class Container(Protocol):
    """How one kind of Hugging Face checkpoint holds quantized layers.

    What is not quantized lies in the same files under its own names, as transformers saves it.

    An object is of one checkpoint. It may remember what only tensors show or only the configuration
    says: :meth:`config` is asked (at the latest: again) after the :meth:`tensors` of all layers, and
    :meth:`plan` before the first :meth:`quant`.
    """

    name: str

    def refuses(self, layer: Layer, spec: LayerSpec) -> str | None:
        """Why ``layer`` with ``spec`` can not be said in these files, naming what, or None."""
        ...

    def tensors(self, layer: str, quant: QuantTensor) -> dict[str, Tensor]:
        """The tensors of the file that hold ``quant``, by full name (``layer`` + a suffix)."""
        ...

    def config(self, plan: Plan, layers: Mapping[str, Layer]) -> dict[str, Any]:
        """``quantization_config`` of config.json; ``layers`` are all that could be quantized."""
        ...

    def plan(self, config: Mapping[str, Any], layers: Mapping[str, Layer]) -> Plan:
        """The inverse of :meth:`config`: what each layer of a checkpoint is.

        Raises:
            UserError: the configuration says what bitsweep does not know, naming the key.
        """
        ...

    def quant(self, layer: str, tensors: Mapping[str, Tensor], spec: LayerSpec) -> QuantTensor:
        """The inverse of :meth:`tensors`: the same codes and parameters, to the last bit."""
        ...
