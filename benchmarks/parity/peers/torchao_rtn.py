"""torchao's round-to-nearest: its scales, zeros and codes for each grid and layer.

The two primitives under its integer tensors (``IntxUnpackedToInt8Tensor.from_hp`` calls exactly
these), so that every width, grouping and symmetry is reachable.
"""

import torch
from exchange import Exchange
from torchao.quantization.quant_primitives import (
    MappingType,
    choose_qparams_affine,
    quantize_affine,
)


def main() -> None:
    exchange = Exchange("torchao", ("torchao", "torch"))
    for grid in exchange.settings["grids"]:
        low, high = -(2 ** (grid["bits"] - 1)), 2 ** (grid["bits"] - 1) - 1
        mapping = MappingType.SYMMETRIC if grid["symmetric"] else MappingType.ASYMMETRIC
        out = {}
        with exchange.timed(grid["name"]):
            for name, weight in exchange.weights().items():
                size = weight.shape[1] if grid["group_size"] == -1 else grid["group_size"]
                scale, zero = choose_qparams_affine(
                    weight,
                    mapping,
                    (1, size),
                    torch.int8,
                    low,
                    high,
                    scale_dtype=getattr(torch, grid["scale_dtype"]),
                    zero_point_dtype=torch.int8,
                    keepdim=True,
                )
                codes = quantize_affine(
                    weight, (1, size), scale.float(), zero, torch.int8, low, high
                )
                out |= {f"{name}/scale": scale, f"{name}/zero": zero, f"{name}/codes": codes}
        exchange.save(f"rtn-{grid['name']}", out)
    exchange.finish()


if __name__ == "__main__":
    main()
