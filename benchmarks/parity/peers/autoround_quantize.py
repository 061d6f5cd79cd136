"""auto-round on our tokens: dense weights of each run."""

from __future__ import annotations

import torch
from auto_round import AutoRound
from exchange import Exchange
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    exchange = Exchange("autoround", ("auto-round", "transformers", "torch"))
    path = exchange.settings["model"]
    for case in exchange.cases("auto-round"):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        tokens = exchange.tokens(case["draw"])[: case["windows"]]
        rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens]
        rounder = AutoRound(
            model,
            tokenizer=AutoTokenizer.from_pretrained(path),
            scheme="W4A16",
            bits=case["bits"],
            group_size=case["group_size"],
            sym=case["symmetric"],
            dataset=DataLoader(rows, batch_size=case["batch"], shuffle=False),
            nsamples=len(rows),
            seqlen=tokens.shape[1],
            batch_size=case["batch"],
            iters=case["iters"],
            seed=case["seed"],
            device_map="cpu",
            amp=False,
            enable_torch_compile=False,
        )
        with exchange.timed(case["name"]):
            model, _ = rounder.quantize()
        modules = dict(model.named_modules())
        weights = {name: modules[name].weight.data.float() for name in exchange.settings["layers"]}
        exchange.save(f"model-{case['name']}", weights)
    exchange.finish()


if __name__ == "__main__":
    main()
