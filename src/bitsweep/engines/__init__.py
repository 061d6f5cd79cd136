"""What executes a model when it is timed: packed codes, never dequantized weights.

An :class:`Engine` turns a model into a :class:`Runner`, or says why it can not. Files of this
folder are found on disk, of two kinds (see :mod:`bitsweep.engines.protocols`):

* kernels (``torch_int4``), which :class:`Layerwise` puts into a Hugging Face model, each layer to
  the one that executes exactly its weights and inputs, so that a mix by role runs as well. The
  engine is named after the kernels that run: ``torch_int4+torch_int8``.
* engines that run the whole graph (``onnxruntime``, ``openvino``).

``dense`` runs what has no quantized layer, in its own dtype.

    engine, reason = choose("auto", model)

How far a packed model is from ``dense``: computing in bf16 at all moves the perplexity of models of
3 M and 260 k parameters by 0.02 to 0.2 % (25,600 tokens of TinyStories, standard error 0.03 %); the
packed kernels are within 0.14 % of ``dense`` in bf16, 0.05 % at the median of eight settings.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitsweep.engines import runner
from bitsweep.engines.layerwise import Layerwise
from bitsweep.engines.protocols import (
    CACHE,
    Engine,
    GraphEngine,
    Kernel,
    Runner,
    beyond_codes,
    counted,
    input_spec,
    lacking,
    quantized_layers,
)
from bitsweep.engines.registry import available, failure, graphs, kernels
from bitsweep.engines.runner import generate
from bitsweep.errors import UserError
from bitsweep.models import Model

__all__ = [
    "CACHE",
    "Dense",
    "Engine",
    "GraphEngine",
    "Kernel",
    "Layerwise",
    "Runner",
    "available",
    "beyond_codes",
    "choose",
    "counted",
    "failure",
    "generate",
    "graphs",
    "input_spec",
    "kernels",
    "lacking",
    "quantized_layers",
]


class Dense:
    """The model as it is: only for one in which nothing is quantized."""

    name = "dense"

    def refuses(self, model: Model) -> str | None:
        layers = quantized_layers(model)
        if layers:
            return (
                f"dense would time dequantized weights: {counted(list(layers), 'quantized layer')}"
            )
        return beyond_codes(model)

    def build(self, model: Model) -> Runner:
        return runner.TorchRunner(model.module)


def choose(name: str, model: Model) -> tuple[Engine | None, str | None]:
    """The engine ``name`` (``auto``, ``dense``, a kernel's, a graph's), or None and why not.

    ``auto`` is ``dense`` where nothing is quantized; else all kernels together, and after them the
    engines of whole graphs by name: the first that executes everything.

    Raises:
        UserError: there is no such engine (``engine=``).
    """
    known = ["auto", "dense", *kernels(), *graphs()]
    if name not in known:
        raise UserError(f"engine={name}: no such engine; there are {', '.join(known)}")
    reasons = []
    for engine in _candidates(name, model):
        reason = failure(engine.name) or engine.refuses(model)
        if reason is None:
            return engine, None
        reasons.append(f"{engine.name}: {reason}" if engine.name in graphs() else reason)
    return None, "; ".join(reasons)


def _candidates(name: str, model: Model) -> Iterator[Engine]:
    """The engines to ask, in order."""
    if name in graphs():
        yield graphs()[name]
    elif name == "dense" or not quantized_layers(model):
        yield Dense()
    else:
        yield Layerwise.plan([k for k in kernels().values() if name in ("auto", k.name)], model)
        if name == "auto":
            yield from graphs().values()
