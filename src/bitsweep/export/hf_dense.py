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
from bitsweep.portable import RULES

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
        reason = RULES["hf-dense"].refuse(model.layers, model.plan.layers)
        if reason is not None:
            return reason
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
