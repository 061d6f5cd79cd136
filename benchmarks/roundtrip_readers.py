"""Perplexity of exported folders by runtimes that know nothing of bitsweep, for ``roundtrip.py``.

    python roundtrip_readers.py RUNTIME jobs.json answers.jsonl

A job is ``{"id", "folder", "tokens"}``, tokens a ``.npy`` of windows int64 ``(n, window)``; its
answer is ``{"ppl", "note"}`` or ``{"error"}``. Each runtime is asked as its documentation says,
with its defaults; a name with ``-f32`` asks it to compute in float32, which it does not by itself:
onnxruntime quantizes inputs (A8), OpenVINO takes bf16 where the processor has it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Logits = Callable[[np.ndarray], np.ndarray]
"""Of a window int64 ``(1, window)``: logits float32 ``(1, window, vocabulary)``."""

Reader = Callable[[Path], tuple[Logits, str]]
"""From a folder to what it computes, and a note of what did so."""


def perplexity(windows: np.ndarray, logits: Logits) -> float:
    """``exp`` of the mean loss of all tokens but each window's first; sums in float64."""
    total, count = 0.0, 0
    for window in windows:
        shown = logits(window[None])[0, :-1].astype(np.float64)
        top = shown.max(-1)
        norm = top + np.log(np.exp(shown - top[:, None]).sum(-1))
        total += float((norm - shown[np.arange(len(window) - 1), window[1:]]).sum())
        count += len(window) - 1
    return math.exp(total / count)


def _torch(module: Any) -> Logits:
    import torch

    def logits(ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = module(torch.from_numpy(ids)).logits.float().numpy()
        return found

    return logits


def transformers(folder: Path) -> tuple[Logits, str]:
    """``AutoModelForCausalLM.from_pretrained(folder)``; fails where a tensor was made up.

    compressed-tensors 0.20 does not open what it packs itself, zero points; asked to dequantize
    while it loads, it does.
    """
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    def load(**options: Any) -> tuple[Any, Any]:
        return AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **options
        )

    said = ""
    try:
        module, report = load()
    except RuntimeError as error:
        config = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
        if "mismatch" not in str(error) or config.get("quant_method") != "compressed-tensors":
            raise
        module, report = load(quantization_config=CompressedTensorsConfig(dequantize=True))
        said = ", dequantize=True"
    if report["missing_keys"]:
        raise RuntimeError(f"left random: {sorted(report['missing_keys'])[0]}")
    kinds = {type(child).__name__ for child in module.modules() if "Linear" in type(child).__name__}
    return _torch(module.eval()), f"{'/'.join(sorted(kinds))}, {str(module.dtype)[6:]}{said}"


def gptqmodel(folder: Path) -> tuple[Logits, str]:
    """``GPTQModel.load(folder)`` with its torch kernel in float16, the most that it offers."""
    import torch
    from gptqmodel import BACKEND, GPTQModel

    loaded = GPTQModel.load(
        str(folder), device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH
    )
    return _torch(loaded.model.eval()), f"TorchLinear, {str(loaded.model.dtype)[6:]}"


def _feeds(ids: np.ndarray, inputs: Iterable[tuple[str, list[Any]]]) -> dict[str, np.ndarray]:
    """What a graph with an empty cache is given: a number in a shape stays, 0 is the past."""
    feeds: dict[str, np.ndarray] = {}
    for name, shape in inputs:
        if name == "input_ids":
            feeds[name] = ids
        elif name == "attention_mask":
            feeds[name] = np.ones_like(ids)
        elif name == "position_ids":
            feeds[name] = np.arange(ids.shape[1])[None]
        else:
            sizes = [size if isinstance(size, int) and size > 0 else 0 for size in shape]
            feeds[name] = np.zeros((len(ids), *sizes[1:]), np.float32)
    return feeds


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} files {pattern}")
    return found[0]


def _onnxruntime(level: str | None) -> Reader:
    def reader(folder: Path) -> tuple[Logits, str]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if level is not None:
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        session = onnxruntime.InferenceSession(
            str(_one(folder, "*.onnx")), options, providers=["CPUExecutionProvider"]
        )
        inputs = [(item.name, item.shape) for item in session.get_inputs()]

        def logits(ids: np.ndarray) -> np.ndarray:
            found: np.ndarray = session.run(["logits"], _feeds(ids, inputs))[0]
            return found

        return logits, "defaults" if level is None else f"accuracy level {level}"

    return reader


def _openvino(options: dict[str, str]) -> Reader:
    def reader(folder: Path) -> tuple[Logits, str]:
        import openvino

        compiled = openvino.Core().compile_model(
            str(_one(folder, "*.xml")), "CPU", {"INFERENCE_NUM_THREADS": "1", **options}
        )
        inputs = [
            (item.any_name, [d.get_length() if d.is_static else None for d in item.partial_shape])
            for item in compiled.inputs
        ]

        def logits(ids: np.ndarray) -> np.ndarray:
            request = compiled.create_infer_request()
            request.infer(_feeds(ids, inputs))
            found: np.ndarray = request.get_tensor("logits").data.astype(np.float32)
            return found

        group = compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return logits, f"{precision}, inputs in groups of {group}" if group else precision

    return reader


READERS: dict[str, Reader] = {
    "transformers": transformers,
    "transformers-0.19": transformers,
    "gptqmodel": gptqmodel,
    "onnxruntime": _onnxruntime(None),
    "onnxruntime-f32": _onnxruntime("1"),
    "openvino": _openvino({}),
    "openvino-f32": _openvino({"INFERENCE_PRECISION_HINT": "f32"}),
}


def answers(reader: Reader, jobs: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    for job in jobs:
        try:
            logits, note = reader(Path(job["folder"]))
            ppl = perplexity(np.load(job["tokens"]), logits)
            yield {"id": job["id"], "ppl": ppl, "note": note}
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[0]
            yield {"id": job["id"], "error": f"{type(error).__name__}: {line[:200]}"}


def main() -> None:
    runtime, jobs, out = sys.argv[1:]
    with Path(out).open("w") as file:
        for answer in answers(READERS[runtime], json.loads(Path(jobs).read_text())):
            print(json.dumps(answer), file=file, flush=True)


if __name__ == "__main__":
    main()
