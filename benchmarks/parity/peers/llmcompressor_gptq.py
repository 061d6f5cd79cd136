"""llm-compressor's GPTQ on our tokens, and its layer function on our weights and Hessians.

Its scales are always those of the original weights (what elsewhere is called static groups), so it
has no case with ``static_groups: false``. ``actorder`` ``static`` is its act_order with them.
"""

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from exchange import Exchange
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM


def arguments(case: dict) -> QuantizationArgs:
    return QuantizationArgs(
        num_bits=case["bits"],
        group_size=case["group_size"],
        strategy="group",
        symmetric=True,
        actorder="static" if case["act_order"] else None,
    )


def end_to_end(exchange: Exchange, case: dict) -> None:
    model = AutoModelForCausalLM.from_pretrained(exchange.settings["model"], dtype=torch.float32)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in exchange.tokens()]
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments(case))
    recipe = GPTQModifier(
        config_groups={"all": scheme},
        ignore=["lm_head"],
        dampening_frac=case["damping"],
        block_size=exchange.settings["block_size"],
        actorder="static" if case["act_order"] else None,
    )
    with exchange.timed(case["name"]):
        oneshot(
            model=model,
            dataset=DataLoader(rows, batch_size=1, shuffle=False),
            recipe=recipe,
            pipeline="sequential",
        )
    modules = dict(model.named_modules())
    exchange.save(
        f"model-{case['name']}",
        {name: modules[name].weight.data.float() for name in exchange.settings["layers"]},
    )


def layer_by_layer(exchange: Exchange, case: dict) -> None:
    args = arguments(case)
    out = {}
    with exchange.timed(f"layers/{case['name']}"):
        for name, weight, hessian in exchange.layers():
            groups = weight.unflatten(1, (-1, case["group_size"]))
            scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
            quantized, _, fell_back = quantize_weight(
                weight[None].clone(),
                hessian[None],
                scale[None],
                zero[None],
                None,
                args,
                blocksize=case["layer_block_size"],
                percdamp=case["damping"],
            )
            if fell_back.any():
                raise RuntimeError(f"{name}: llm-compressor fell back to RTN")
            out[f"{name}/weight"], out[f"{name}/scale"] = quantized[0], scale
    exchange.save(f"layers-{case['name']}", out)


def main() -> None:
    exchange = Exchange(
        "llmcompressor", ("llmcompressor", "compressed-tensors", "transformers", "torch")
    )
    for case in exchange.settings["cases"]:
        if case["static_groups"]:
            layer_by_layer(exchange, case)
            end_to_end(exchange, case)
    exchange.finish()


if __name__ == "__main__":
    main()
