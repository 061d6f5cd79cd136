"""A point leaves the house: checkpoints and graphs that other runtimes load.

One file a format, found on disk: ``--to compressed-tensors`` is ``export/compressed_tensors.py``.
It has a :class:`Container` of that name (``CompressedTensors``), which says how checkpoint files
hold quantized layers, a layer at a time, so that a checkpoint larger than memory is written shard
by shard; or it is a :class:`Writer`, a module with ``refuses(model)`` and ``write(model, folder)``.
``checkpoint.py`` makes the folder around either, whole or not at all. A module's ``LOADING``
(Markdown), or ``loading(plan)`` where no way is right for all, tells the reader of the model card
how transformers opens the files; without them the card quotes the module's docstring.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor

from bitsweep.compose import choices, nearest
from bitsweep.errors import UserError
from bitsweep.models import Layer
from bitsweep.portable import Rules
from bitsweep.spec import InputSpec, LayerSpec, Plan
from bitsweep.tensor import QuantTensor

if TYPE_CHECKING:
    from bitsweep.models import Model


class Container(Protocol):
    """How one kind of Hugging Face checkpoint holds quantized layers.

    What is not quantized lies in the same files under its own names, as transformers saves it.

    An object is of one checkpoint. It may remember what only tensors show or only the configuration
    says: :meth:`config` is asked (at the latest: again) after the :meth:`tensors` of all layers,
    and :meth:`plan` before the first :meth:`quant`.
    """

    name: str
    rules: Rules
    """Why a plan can not be said in these files."""

    def tensors(
        self, layer: str, quant: QuantTensor, inputs: InputSpec | None = None
    ) -> dict[str, Tensor]:
        """The tensors of the file that hold ``quant``, by full name (``layer`` + a suffix).

        ``inputs`` is what the layer's inputs become: files may hold such a layer in another way.
        """
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


class Writer(Protocol):
    """A format's module that writes its own files; the folder around them is made for it."""

    def refuses(self, model: Model) -> str | None:
        """Why ``model`` can not be said in this format, naming what, or None."""
        ...

    def write(self, model: Model, folder: Path) -> None:
        """Write ``model`` into ``folder``, which is there and has no file of these names."""
        ...


def names() -> list[str]:
    """What ``--to`` takes, read from the files without importing them."""
    found = []
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {
            node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)
        }
        if _title(path.stem) in defined or {"refuses", "write"} <= defined:
            found.append(path.stem.replace("_", "-"))
    return found


@functools.cache
def containers() -> dict[str, type[Container]]:
    """The kinds of checkpoint by name: their class, of which each checkpoint takes an object."""
    found = {}
    for name in names():
        module = _module(name)
        title = _title(module.__name__.rpartition(".")[2])
        own = getattr(module, title, None)  # not one that it imports, as an engine's class
        if own is not None and own.__module__ == module.__name__:
            found[name] = cast(type[Container], own)
    return found


def get(name: str) -> Container | Writer:
    """The format called ``name``: a new Container, or the module that writes.

    Raises:
        UserError: there is no such format (``--to``).
    """
    known = names()
    if name not in known:
        raise UserError(f"--to {name}: no such format{nearest(name, known)}{choices(known)}")
    if name in containers():
        return containers()[name]()
    return cast(Writer, _module(name))


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def _title(stem: str) -> str:
    """``CompressedTensors`` of ``compressed_tensors``."""
    return "".join(part.title() for part in stem.split("_"))
