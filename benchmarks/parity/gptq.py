"""GPTQ beside llm-compressor and GPTQModel: layer by layer, and end to end.

Layer by layer every implementation gets one weight and one Hessian, so that only the algorithm
speaks. End to end each runs its own calibration over the same token ids, and all the dense weights
that come back are judged by one evaluation.
"""

from __future__ import annotations

import json
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inputs import Inputs
from reference import gptq as plain_gptq
from reference import objective
from safetensors.torch import load_file
from torch import Tensor

from bitsweep import intervals
from bitsweep.methods.gptq import GPTQ
from bitsweep.spec import LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

Row = dict[str, Any]

GROUP_SIZE, DAMPING, BLOCK_SIZE = 64, 0.01, 128
WITHIN_PERPLEXITY, WITHIN_OBJECTIVE, EQUAL_CODES = 1.01, 0.001, 0.999

ORDERS = {"llmcompressor": "block", "gptqmodel": "true sequential"}
"""Which layers of a block see each other's quantization: none, or those that ran before."""


def _case(bits: int, static: bool, act_order: bool) -> dict[str, Any]:
    name = f"w{bits}-{'original' if static else 'updated'}{'-act_order' * act_order}"
    return {
        "name": name,
        "bits": bits,
        "group_size": GROUP_SIZE,
        "damping": DAMPING,
        "act_order": act_order,
        "static_groups": static,
        "end_to_end": static or not act_order,
        # GPTQModel fits a group to weights that miss the updates of the running block. With blocks
        # of one group nothing is missed, and the grid is the same for all.
        "layer_block_size": BLOCK_SIZE if static else GROUP_SIZE,
    }


KINDS = ((True, False), (True, True), (False, False), (False, True))
CASES = [_case(bits, *kind) for kind in KINDS for bits in (4, 3)]


def method(case: Row, order: str = "block") -> GPTQ:
    """Our GPTQ with a case's settings."""
    return GPTQ(
        damping=case["damping"],
        act_order=case["act_order"],
        static_groups=case["static_groups"],
        block_size=BLOCK_SIZE,
        true_sequential=order == "true sequential",
    )


# ------------------------------------------------------------------------------- layer by layer


def layers(inputs: Inputs, work: Path) -> list[Row]:
    """A row for each case, layer and opponent: equal codes, equal scales, ratio of objectives."""
    rows: list[Row] = []
    for case in CASES:
        theirs = _theirs(work, case)
        for name in inputs.layers:
            weight, hessian = inputs.model.weight(name).detach(), inputs.hessians[name]
            spec = QuantSpec(case["bits"], GROUP_SIZE, True, scale_dtype="float32")
            quant = method(case).quantize(weight.clone(), hessian, spec)
            ours = quant.dequantize()
            codes = quant.codes.long() - 2 ** (case["bits"] - 1)
            settings = ("bits", "group_size", "damping", "act_order", "static_groups")
            plain = plain_gptq(weight, hessian, **{key: case[key] for key in settings})
            opponents = {"reference": plain}
            opponents |= {peer: _peer_layer(tensors, name) for peer, tensors in theirs.items()}
            mine = objective(weight, ours, hessian)
            for opponent, (other, dense) in opponents.items():
                equal = float((codes == other).double().mean())
                ratio = mine / objective(weight, dense, hessian)
                met = equal >= EQUAL_CODES or abs(ratio - 1) <= WITHIN_OBJECTIVE
                required = opponent != "gptqmodel as shipped"  # it fits other grids
                rows.append(
                    {
                        "case": case["name"],
                        "layer": name,
                        "shape": "x".join(map(str, weight.shape)),
                        "against": opponent,
                        "equal_codes": round(equal, 6),
                        "objective_ratio": round(ratio, 6),
                        "met": met if required else None,
                    }
                )
        print(f"layers {case['name']}", flush=True)
    return rows


def _theirs(work: Path, case: Row) -> dict[str, dict[str, Tensor]]:
    files = {peer: work / peer / f"layers-{case['name']}.safetensors" for peer in ORDERS}
    files["gptqmodel as shipped"] = (
        work / "gptqmodel" / f"layers-{case['name']}-as_shipped.safetensors"
    )
    return {peer: load_file(file) for peer, file in files.items() if file.exists()}


def _peer_layer(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Signed codes and the dense weight of a peer's layer; codes follow from weight and scale."""
    weight, scale = tensors[f"{name}/weight"], tensors[f"{name}/scale"]
    groups = tensors.get(f"{name}/group")
    if groups is None:
        groups = torch.arange(weight.shape[1]) // GROUP_SIZE
    return torch.round(weight / scale[:, groups.long()]).long(), weight


def same_tokens(inputs: Inputs, work: Path) -> float:
    """Least share of equal codes between a peer's own run and its layer function, first layers.

    Query, key and value of the first block see the embedding's output alone, so a peer that
    calibrated on our tokens, all and only those, must give the codes that our Hessian gives.
    """
    first = next(iter(inputs.calibration.model.sequential(0)))
    shares = []
    for case in filter(itemgetter("end_to_end"), CASES):
        for peer, tensors in _theirs(work, case).items():
            own = work / peer / f"model-{case['name']}.safetensors"
            if not own.exists() or (peer == "gptqmodel" and not case["static_groups"]):
                continue  # its own run fits other grids: blocks of 128
            dense = load_file(own)
            for name in first:
                codes, _ = _peer_layer(tensors, name)
                run, _ = _peer_layer({**tensors, f"{name}/weight": dense[name]}, name)
                shares.append(float((codes == run).double().mean()))
    return round(min(shares), 6)


# ------------------------------------------------------------------------------------ end to end


def end_to_end(inputs: Inputs, work: Path) -> list[Row]:
    """A row for each case and tool: perplexity, its ratio to full precision and ours to theirs."""
    full = inputs.losses({})
    rows = [_row({"name": "full precision"}, "-", "-", inputs, full, full, {})]
    for case in filter(itemgetter("end_to_end"), CASES):
        peers = {peer: work / peer / f"model-{case['name']}.safetensors" for peer in ORDERS}
        for peer, file in peers.items():
            if not file.exists():
                continue
            order = ORDERS[peer]
            weights, cost = ours(inputs, case, order)
            mine = inputs.losses(weights)
            rows.append(_row(case, "bitsweep", order, inputs, mine, full, cost))
            report = json.loads((work / peer / "report.json").read_text())
            theirs = inputs.losses(load_file(file))
            row = _row(case, peer, order, inputs, theirs, full, report["runs"][case["name"]])
            ratio = intervals.perplexity_ratio(mine.numpy(), theirs.numpy(), _predicted(inputs))
            row["ours_over_theirs"] = round(ratio.value, 5)
            row["lo"], row["hi"] = round(ratio.lo, 5), round(ratio.hi, 5)
            rows.append(row)
            shown = ("case", "tool", "perplexity", "ours_over_theirs", "lo", "hi")
            print({key: row[key] for key in shown}, flush=True)
    return rows


def anchor(inputs: Inputs) -> float:
    """Full precision on the whole evaluation text, to hold against data/PROVENANCE.md."""
    losses = inputs.losses({}, inputs.text)
    predicted = len(inputs.text) * (inputs.text.shape[1] - 1)
    return round(float(torch.exp(losses.sum() / predicted)), 4)


def ours(inputs: Inputs, case: Row, order: str) -> tuple[dict[str, Tensor], Row]:
    """Dense weights of our GPTQ, codes chosen with float32 scales as the peers', and the cost."""
    spec = LayerSpec(QuantSpec(case["bits"], GROUP_SIZE, True, scale_dtype="float32"))
    plan = Plan(dict.fromkeys(inputs.layers, spec))
    inputs.calibration.tokens  # noqa: B018 - tokenize before the clock starts
    wall, cpu = time.perf_counter(), time.process_time()
    model = method(case, order)(inputs.model.copy(), plan, inputs.calibration)
    cost = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    weights: dict[str, Tensor] = {}
    for name in inputs.layers:
        quant = model.get(name).quant
        assert isinstance(quant, QuantTensor)
        weights[name] = quant.dequantize()
    return weights, {key: round(value, 2) for key, value in cost.items()}


def _row(
    case: Row, tool: str, order: str, inputs: Inputs, losses: Tensor, full: Tensor, cost: Row
) -> Row:
    predicted = _predicted(inputs)
    return {
        "case": case["name"],
        "tool": tool,
        "order": order,
        "perplexity": round(intervals.perplexity(losses.numpy(), predicted).value, 4),
        "over_full_precision": round(
            intervals.perplexity_ratio(losses.numpy(), full.numpy(), predicted).value, 5
        ),
        "ours_over_theirs": None,
        "lo": None,
        "hi": None,
        "wall_s": cost.get("wall_s"),
        "cpu_s": cost.get("cpu_s"),
    }


def _predicted(inputs: Inputs) -> np.ndarray[Any, np.dtype[np.float64]]:
    windows, window = inputs.evaluation.shape
    return np.full(windows, window - 1, dtype=np.float64)


def verdicts(rows: list[Row]) -> list[Row]:
    """For each case: is our perplexity within 1 % of the worse peer's (or below it)?

    ``peers`` counts those that have the case: the requirement speaks of the worse of two.
    """
    answer: list[Row] = []
    for case in CASES:
        here = [row for row in rows if row["case"] == case["name"]]
        ours = [row["perplexity"] for row in here if row["tool"] == "bitsweep"]
        theirs = [row["perplexity"] for row in here if row["tool"] != "bitsweep"]
        if theirs:
            ratio = max(ours) / max(theirs)
            row = {"case": case["name"], "peers": len(theirs)}
            row |= {"worse_over_worse": round(ratio, 5), "met": ratio <= WITHIN_PERPLEXITY}
            answer.append(row)
    return answer
