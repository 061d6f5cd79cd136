"""GPTQModel's GPTQ on our tokens, and its per-layer class on our weights and Hessians."""

import os

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # one worker crashes its import on two cores

import torch
from exchange import Exchange
from gptqmodel import GPTQModel, QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module
from torch import Tensor, nn


def config(case: dict, **more: object) -> QuantizeConfig:
    return QuantizeConfig(
        bits=case["bits"],
        group_size=case["group_size"],
        sym=True,
        desc_act=case["act_order"],
        static_groups=case["static_groups"],
        act_group_aware=False,  # its default, a third order of columns that nobody else has
        damp_percent=case["damping"],
        fallback=None,
        offload_to_disk=False,
        **more,
    )


def end_to_end(exchange: Exchange, case: dict) -> None:
    model = GPTQModel.load(
        exchange.settings["model"], config(case, device="cpu"), dtype=torch.float32
    )
    rows = [
        {"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in exchange.tokens()
    ]
    with exchange.timed(case["name"]):
        model.quantize(rows, batch_size=1, calibration_sort=None)
    modules = dict(model.model.named_modules())
    exchange.save(
        f"model-{case['name']}",
        {name: dense(modules[name], case) for name in exchange.settings["layers"]},
    )


def dense(module: nn.Module, case: dict) -> Tensor:
    """The weight ``(out, in)`` that a packed module stands for: float16 scales, as it is saved.

    After quantizing, its zeros are those of the file format, one too small; the loader's own
    conversion mends them.
    """
    if isinstance(module, nn.Linear):
        raise TypeError("GPTQModel left a layer unpacked")
    convert_gptq_v1_to_v2_format_module(module, bits=case["bits"], pack_dtype=module.pack_dtype)
    return module.dequantize_weight().T.float()


def layer_by_layer(exchange: Exchange, case: dict, run: str, block_size: int) -> None:
    out = {}
    with exchange.timed(f"layers/{run}"):
        for name, weight, hessian in exchange.layers():
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.data = weight
            task = GPTQ(linear, config(case))
            task.quantizer.configure(perchannel=True)
            # What add_batch() leaves behind after two tokens whose X^T X is the Hessian: it will
            # be multiplied by 2 / 2, so the Hessian arrives bit for bit.
            task._device_hessian_partials = {torch.device("cpu"): hessian}
            task._device_sample_counts = {torch.device("cpu"): 2}
            task.nsamples, task._hessian_dirty = 2, True
            quantized, scale, _, g_idx, _, _, damp, _ = task.quantize(blocksize=block_size)
            if damp != case["damping"]:
                raise RuntimeError(f"{name}: GPTQModel raised its damping to {damp}")
            out[f"{name}/weight"] = quantized
            out[f"{name}/scale"] = scale
            out[f"{name}/group"] = g_idx
    exchange.save(f"layers-{run}", out)


def main() -> None:
    exchange = Exchange("gptqmodel", ("gptqmodel", "transformers", "torch"))
    for case in exchange.settings["cases"]:
        layer_by_layer(exchange, case, case["name"], case["layer_block_size"])
        if case["layer_block_size"] != exchange.settings["block_size"]:
            run = f"{case['name']}-as_shipped"
            layer_by_layer(exchange, case, run, exchange.settings["block_size"])
        if case["end_to_end"]:
            end_to_end(exchange, case)
    exchange.finish()


if __name__ == "__main__":
    main()
