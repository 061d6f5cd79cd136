"""bitsandbytes' NF4 on our weights: codes and float32 absmax of each block of 64."""

from __future__ import annotations

import bitsandbytes.functional as F
import torch
from exchange import Exchange


def main() -> None:
    exchange = Exchange("bitsandbytes", ("bitsandbytes", "torch"))
    for case in exchange.cases("bitsandbytes"):
        out = {}
        with exchange.timed(case["name"]):
            for name, weight in exchange.weights().items():
                packed, state = F.quantize_4bit(
                    weight, quant_type="nf4", blocksize=case["group_size"]
                )
                pairs = packed.view(-1)
                codes = torch.stack([pairs >> 4, pairs & 15], dim=1).view(weight.shape)
                out[f"{name}/codes"] = codes
                out[f"{name}/scale"] = state.absmax.float()
        exchange.save(case["name"], out)
    exchange.finish()


if __name__ == "__main__":
    main()
