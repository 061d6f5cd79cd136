"""compressed-tensors' round-to-nearest: its scales, zeros and codes for each grid and layer."""

import torch
from compressed_tensors.quantization import QuantizationArgs, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from exchange import Exchange


def main() -> None:
    exchange = Exchange("compressed_tensors", ("compressed-tensors", "torch"))
    for grid in exchange.settings["grids"]:
        group = grid["group_size"]
        args = QuantizationArgs(
            num_bits=grid["bits"],
            symmetric=grid["symmetric"],
            strategy="channel" if group == -1 else "group",
            group_size=None if group == -1 else group,
            scale_dtype=None if grid["scale_dtype"] == "float32" else grid["scale_dtype"],
        )
        out = {}
        with exchange.timed(grid["name"]):
            for name, weight in exchange.weights().items():
                rows = weight.unflatten(1, (-1, weight.shape[1] if group == -1 else group))
                scale, zero = calculate_qparams(rows.amin(-1), rows.amax(-1), args)
                codes = quantize(weight, scale, zero, args, dtype=torch.int8)
                out |= {f"{name}/scale": scale, f"{name}/zero": zero, f"{name}/codes": codes}
        exchange.save(f"rtn-{grid['name']}", out)
    exchange.finish()


if __name__ == "__main__":
    main()
