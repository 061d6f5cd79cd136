"""Every other method that has a public implementation, beside it: which runs, and how they compare.

Deterministic ones are held to identical codes or values, weight by weight; those that calibrate end
to end, to the peer's own range over three calibration draws or seeds.
"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

GROUP_SIZE, SEEDS = 64, 3
ITERATIONS, BATCH = 200, 4
"""Of auto-round: its default number of steps; windows in a step, half of its default for time."""


def _cases() -> list[Row]:
    cases: list[Row] = []

    def add(peer: str, method: str, name: str, **settings: Any) -> None:
        cases.append(
            {
                "peer": peer,
                "method": method,
                "name": name,
                "group_size": GROUP_SIZE,
                "symmetric": False,
                "seed": 0,
                "draw": 0,
                **settings,
            }
        )

    add("bitsandbytes", "nf4", "nf4", bits=4, format="nf")
    for name, bits in (("e4m3", 8), ("e5m2", 8), ("mxfp8", 8), ("mxfp4", 4), ("nvfp4", 4)):
        add("torchao", "float", name, bits=bits, format=name)
    for bits in (8, 4, 3, 2):
        add("hqq", "hqq", f"hqq-w{bits}", bits=bits)
    for bits in (4, 3, 2):
        for draw in range(SEEDS):
            name = f"awq-w{bits}-draw{draw}"
            add("llm-compressor", "awq", name, bits=bits, draw=draw, duo_scaling=True)
    add("llm-compressor", "smooth", "smooth", strength=0.5)
    for score in ("wanda", "sparsegpt"):
        for pattern, structure in (("unstructured", "0:0"), ("2:4", "2:4")):
            add(
                "llm-compressor",
                score,
                f"{score}-{pattern.replace(':', '_')}",
                sparsity=0.5,
                pattern=pattern,
                mask_structure=structure,
            )
    for bits in (4, 3):
        for seed in range(SEEDS):
            add("llm-compressor", "rotate", f"rotate-w{bits}-seed{seed}", bits=bits, seed=seed)
    for bits in (4, 3, 2):
        for seed in range(SEEDS):
            name = f"auto_round-w{bits}-seed{seed}"
            options = {"iters": ITERATIONS, "batch": BATCH, "symmetric": True}
            add("auto-round", "auto_round", name, bits=bits, seed=seed, **options)
    return cases


CASES = _cases()
SCRIPTS = [
    ("misc", "bitsandbytes_nf4", "bitsandbytes"),
    ("torchao", "torchao_floats", "torchao_floats"),
    ("misc", "hqq_quantize", "hqq"),
    ("llmcompressor", "llmcompressor_methods", "llmcompressor_methods"),
    ("auto_round", "autoround_quantize", "autoround"),
]
"""Environment, script, and the folder below the work folder that it fills."""
