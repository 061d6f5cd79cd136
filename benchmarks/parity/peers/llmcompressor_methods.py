"""llm-compressor's AWQ, SmoothQuant, SparseGPT, Wanda and SpinQuant on our tokens.

Hands back dense weights (and norms' weights, where a method changes them) of each run.
"""

from __future__ import annotations

from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from exchange import Exchange
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform import SpinQuantModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

# Their AWQ pins memory, which needs an accelerator: without one it ends in an exception.
IntermediatesCache.pin_memory = lambda *a, **k: None


def rounding(case: dict[str, Any]) -> QuantizationModifier:
    args = QuantizationArgs(
        num_bits=case["bits"],
        group_size=case["group_size"],
        strategy="group",
        symmetric=case["symmetric"],
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    return QuantizationModifier(config_groups={"all": scheme}, ignore=["lm_head"])


def recipe(case: dict[str, Any]) -> list[Any]:
    match case["method"]:
        case "awq":
            return [AWQModifier(duo_scaling=case["duo_scaling"]), rounding(case)]
        case "smooth":
            return [SmoothQuantModifier(smoothing_strength=case["strength"])]
        case "sparsegpt" | "wanda":
            kind = SparseGPTModifier if case["method"] == "sparsegpt" else WandaPruningModifier
            return [
                kind(
                    sparsity=case["sparsity"],
                    mask_structure=case["mask_structure"],
                    targets=["Linear"],
                    ignore=["re:.*lm_head"],
                )
            ]
        case "rotate":
            spin = SpinQuantModifier(rotations=["R1", "R2"], transform_type="random-hadamard")
            return [spin, rounding(case)]
    raise ValueError(case["method"])


def dense(module: nn.Module) -> torch.Tensor:
    """The weight that a layer multiplies with: its own, or what its codes stand for."""
    weight = module.weight.data
    scheme = getattr(module, "quantization_scheme", None)
    if scheme is None or scheme.weights is None:
        return weight.float()
    return forward_quantize(module, weight, "weight", scheme.weights).float()


def main() -> None:
    exchange = Exchange("llmcompressor_methods", ("llmcompressor", "compressed-tensors", "torch"))
    for case in exchange.cases("llm-compressor"):
        torch.manual_seed(case["seed"])
        model = AutoModelForCausalLM.from_pretrained(
            exchange.settings["model"], dtype=torch.float32
        )
        rows = [
            {"input_ids": row, "attention_mask": torch.ones_like(row)}
            for row in exchange.tokens(case["draw"])[: case["windows"]]
        ]
        with exchange.timed(case["name"]):
            oneshot(
                model=model,
                dataset=DataLoader(rows, batch_size=1, shuffle=False),
                recipe=recipe(case),
                pipeline="sequential",
            )
        names = [*exchange.settings["layers"], *exchange.settings["others"]]
        modules = dict(model.named_modules())
        exchange.save(f"model-{case['name']}", {name: dense(modules[name]) for name in names})
    exchange.finish()


if __name__ == "__main__":
    main()
