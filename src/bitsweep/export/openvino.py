"""An OpenVINO IR: ``openvino_model.xml`` and ``.bin``, weights compressed, the cache inside.

Inputs are ``input_ids`` ``(batch, new)`` and ``attention_mask`` ``(batch, past + new)``, int64, the
output is ``logits`` ``(batch, new, vocabulary)``; keys and values are variables of the inference
request, emptied by ``reset_state()``. A tied pair is one constant.

The file says how it is run as quantized: ``runtime_options`` turn dynamic quantization of inputs
off (or to the point's own groups) and keep the cache floating. What no file can say is the
precision: on a processor with bf16 the plugin takes that, unless it is compiled with
``INFERENCE_PRECISION_HINT=f32``, which inputs of 8 bits need.

    core = openvino.Core()
    model = core.compile_model("openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitsweep.engines import _openvino
from bitsweep.engines.openvino import Openvino, input_group
from bitsweep.models import Model

LARGE = 4096
"""Numbers of a constant that is worth halving; all that is smaller is less than a percent."""


def refuses(model: Model) -> str | None:
    """Why an IR can not say ``model``, or the CPU plugin would not execute it as it is."""
    return Openvino().refuses(model)


def write(model: Model, folder: Path) -> None:
    """Write both files into ``folder``."""
    graph = _openvino.convert(model, last_only=False)
    halve(graph)
    options = {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(input_group(model)),
        "KV_CACHE_PRECISION": "f32",
    }
    for name, value in options.items():
        graph.set_rt_info(value, ["runtime_options", name])
    path = folder / "openvino_model.xml"
    _openvino.library().save_model(graph, str(path), compress_to_fp16=False)


def halve(graph: Any) -> None:
    """Store float32 constants that are exact in 16 bits, of a 16-bit checkpoint, in 16 bits."""
    ov, ops = _openvino.library(), _openvino.operators()
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32:
            continue
        if int(np.prod(node.shape)) < LARGE:
            continue
        values = torch.from_numpy(np.array(node.data))
        for dtype, kind in ((torch.bfloat16, ov.Type.bf16), (torch.float16, ov.Type.f16)):
            narrow = values.to(dtype)
            if torch.equal(narrow.float(), values):
                tensor = ov.Tensor(kind, ov.Shape(node.shape))
                tensor.data.view(np.uint16)[...] = narrow.view(torch.int16).numpy().view(np.uint16)
                wide = ops.convert(ov.op.Constant(tensor), "f32")
                for user in node.output(0).get_target_inputs():
                    user.replace_source_output(wide.output(0))
                break
