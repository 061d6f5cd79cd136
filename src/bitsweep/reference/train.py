"""Train the embedded reference: `python -m bitsweep.reference.train --out DIR --seed 0`.

Forward and backward run in bf16 on weights that are, after every step, the bf16 rounding of fp32
master weights; so the exported bf16 weights are exactly those that were trained. Muon for the
hidden matrices, AdamW for the rest, no weight decay: warm-up, constant rate, linear decay to zero.
No training document is seen twice.

The same command gives the same log up to floating-point noise (kernels differ between CPUs and
thread counts). An interrupted run goes on from its last checkpoint when it is started again.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bitsweep.reference.evaluate import report
from bitsweep.reference.text import documents
from bitsweep.reference.tokenizer import VOCABULARY, save_tokenizer

LENGTH = 512  # tokens a training window, and the longest position
BATCH = 8  # windows a step
MUON_RATE, ADAM_RATE = 4e-3, 3e-3
GAIN_SPREAD = 0.55  # standard deviation of the logarithm of the gains
_BOS_EVERY = 4  # a <bos> stands before every fourth document, so that both habits are learnt
_CHUNK = 256  # documents tokenized at a time


def configuration() -> LlamaConfig:
    """3.7 M parameters, untied, every width a multiple of 128."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )


@torch.no_grad()
def initialise(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Initial weights; returns the gains `(in,)` in front of each linear that a block's norm feeds.

    The gains of a block's norms are drawn log-normal and stay as they are, so that channels differ
    in scale as they do in large trained models. What is trained of a linear behind them is its
    product with the gains: the function learns as if the gains were 1, and the weights carry the
    differences of scale from the first step to the last. Without them a model this small and this
    sure of its text hardly feels 3 bits.
    """
    depth = len(model.model.layers)
    gains: dict[str, torch.Tensor] = {}

    def fill(linear: torch.nn.Linear, scale: float = 1.0) -> None:
        linear.weight.normal_(0, scale * linear.in_features**-0.5)

    for index, layer in enumerate(model.model.layers):
        for norm, names in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            gain = layer.get_submodule(norm).weight
            gain.log_normal_(0, GAIN_SPREAD).copy_(gain.bfloat16())
            for name in names:
                linear = layer.get_submodule(name)
                fill(linear)
                linear.weight /= gain
                gains[f"model.layers.{index}.{name}.weight"] = gain.detach().clone()
        fill(layer.self_attn.o_proj, (2 * depth) ** -0.5)
        fill(layer.mlp.down_proj, (2 * depth) ** -0.5)
    model.model.embed_tokens.weight.normal_(0, 0.1)
    return gains


class Stream:
    """Training tokens, `BATCH` windows at a time; `state()` is what a checkpoint needs."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, document: int, rest: list[int]) -> None:
        self.tokenizer = tokenizer
        self.document = document  # index of the next document to tokenize
        self.tokens = rest  # tokenized, not yet given out
        self.source: Iterator[str] = documents("train", document)

    def state(self) -> dict[str, object]:
        return {"document": self.document, "rest": self.tokens}

    def batch(self) -> torch.Tensor:
        """[BATCH, LENGTH + 1] token ids; a window's last token is the next one's first."""
        need = BATCH * LENGTH
        while len(self.tokens) <= need:
            content = [
                ("<bos>" if index % _BOS_EVERY == 0 else "") + next(self.source) + "\n\n"
                for index in range(self.document, self.document + _CHUNK)
            ]
            self.document += _CHUNK
            ids = self.tokenizer("".join(content), add_special_tokens=False, verbose=False)
            self.tokens += ids["input_ids"]
        windows = torch.tensor(self.tokens[: need + 1])
        del self.tokens[:need]
        return windows.unfold(0, LENGTH + 1, LENGTH)


def _rate(step: int, steps: int) -> float:
    """Share of the full learning rate: warm-up, constant to 60 %, then linearly to zero."""
    return min(1.0, (step + 1) / 100, (steps - step) / (0.4 * steps))


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an HF folder under a temporary name and put it in the place of `folder`."""
    new, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def train(out: Path, seed: int, steps: int, every: int, compiled: bool) -> None:
    """Train for `steps` steps; evaluate, export and save a checkpoint after each `every` steps."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = save_tokenizer(out / "tokenizer", LENGTH)
    model = LlamaForCausalLM(configuration())
    gains = initialise(model)
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, *newline],  # a generation ends with its line
        pad_token_id=tokenizer.pad_token_id,
    )
    trained = {n: p for n, p in model.named_parameters() if p.ndim == 2 or ".layers." not in n}
    masters = {name: p.detach() * gains.get(name, 1.0) for name, p in trained.items()}
    model = model.to(torch.bfloat16)
    hidden = [p for name, p in masters.items() if ".layers." in name]
    others = [p for name, p in masters.items() if ".layers." not in name]
    muon = torch.optim.Muon(hidden, lr=MUON_RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    forward = torch.compile(model) if compiled else model

    step, seconds, stream = 0, 0.0, Stream(tokenizer, 0, [])
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        step, seconds = state["step"], state["seconds"]
        stream = Stream(tokenizer, **state["stream"])
        for name, saved in state["masters"].items():
            masters[name].copy_(saved)
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])

    def refresh() -> None:
        """The model's bf16 weights from the fp32 masters."""
        for name, p in model.named_parameters():
            if name in masters:
                p.data.copy_(masters[name] / gains.get(name, 1.0))

    def log(**entry: object) -> None:
        entry = {"step": step, "tokens": step * BATCH * LENGTH, "seconds": round(seconds)} | entry
        print(json.dumps(entry), flush=True)
        with (out / "train_log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    refresh()
    model.train()
    began, losses = time.monotonic(), list[float]()
    while step < steps:
        windows = stream.batch()
        targets = windows[:, 1:].masked_fill(windows[:, 1:] == tokenizer.bos_token_id, -100)
        logits = forward(input_ids=windows[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            if name in masters:
                masters[name].grad = p.grad.float() / gains.get(name, 1.0)
            p.grad = None
        torch.nn.utils.clip_grad_norm_(masters.values(), 1.0)
        share = _rate(step, steps)
        for optimizer, rate in ((muon, MUON_RATE), (adam, ADAM_RATE)):
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.step()
        refresh()
        losses.append(loss.item())
        step += 1
        if step % 50 == 0:
            now = time.monotonic()
            seconds, began = seconds + now - began, now
            log(loss=round(sum(losses) / len(losses), 4), rate=round(share, 4))
            losses.clear()
        if step % every == 0 or step == steps:
            log(evaluation=report(model, tokenizer))
            model.train()
            export(model, tokenizer, out / "model")
            state = {
                "step": step,
                "seconds": seconds,
                "stream": stream.state(),
                "masters": masters,
                "muon": muon.state_dict(),
                "adam": adam.state_dict(),
            }
            torch.save(state, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
            began = time.monotonic()  # `seconds` counts training only


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, log and model go here")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    parser.add_argument("--steps", type=int, default=3400, help=f"of {BATCH * LENGTH} tokens")
    parser.add_argument("--every", type=int, default=400, help="steps between evaluations")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="faster, needs a C++ compiler")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.out, options.seed, options.steps, options.every, options.compile)


if __name__ == "__main__":
    main()
