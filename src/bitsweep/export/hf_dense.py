"""A plain Hugging Face checkpoint: what the codes stand for, as floats that any runtime loads.

Nothing is small here: weights stand in the dtype that the point computes in (float32 unless
``model.dtype`` says else), which holds them exactly, pruned ones as zeros. What quantizes inputs
has no place in such files.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from bitsweep.artifacts import Artifacts
from bitsweep.export import contents
from bitsweep.export.checkpoint import SHARD_BYTES, Shards, stored_dtype
from bitsweep.models import Model, files, skeleton

LOADING = """\
```python
# pip install transformers torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
"""


def refuses(model: Model) -> str | None:
    """Why ``model`` is more than its weights, naming what, or None."""
    if model.plan is not None:
        for name, spec in model.plan.layers.items():
            if spec.input is not None:
                return f"{name} ({spec}): quantized inputs are nothing of a dense checkpoint"
    return contents.unsaid(model, skeleton(model.source, Artifacts(None)))


def write(model: Model, folder: Path, limit: int = SHARD_BYTES) -> None:
    """The weights as safetensors in ``folder``, a tied pair once."""
    plain = skeleton(model.source, Artifacts(None))
    found = files.locate(model.source, True, Artifacts(None))

    def hold(name: str, module: contents.Quantized) -> dict[str, Tensor]:
        weight = module.weight
        if isinstance(plain.get(name), Conv1D):  # which keeps its weight the other way round
            weight = weight.t()
        return {f"{name}.weight": weight}

    shards = Shards(folder, limit)
    for name, tensor in contents.tensors(model, stored_dtype(found, model.source.path), hold):
        shards.add(name, tensor)
    shards.close()
