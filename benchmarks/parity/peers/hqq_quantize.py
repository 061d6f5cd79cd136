"""HQQ's authors' code on our weights, scales and zeros in float16, as it ships."""

from __future__ import annotations

import torch
from exchange import Exchange
from hqq.core.quantize import Quantizer


def main() -> None:
    exchange = Exchange("hqq", ("hqq", "torch"))
    weights = exchange.weights()
    for case in exchange.cases("hqq"):
        out = {}
        with exchange.timed(case["name"]):
            for name, weight in weights.items():
                codes, meta = Quantizer.quantize(
                    weight,
                    nbits=case["bits"],
                    group_size=case["group_size"],
                    axis=1,
                    round_zero=False,
                    bitpack=False,
                    compute_dtype=torch.float16,
                    device="cpu",
                )
                zero, scale = meta["zero"].half(), meta["scale"].half()  # as its layers keep them
                restored = (codes.float() - zero.float()) * scale.float()
                out[f"{name}/weight"] = restored.view(weight.shape)
        exchange.save(case["name"], out)
    exchange.finish()


if __name__ == "__main__":
    main()
