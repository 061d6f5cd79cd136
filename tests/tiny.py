"""Tiny random-weight instances of every supported architecture, in Hugging Face layout.

``tiny.save("llama", folder)`` writes config, safetensors and a byte-level tokenizer;
``tiny.llama(folder)`` is the same by name; ``tiny.load("llama", folder)`` gives a loaded Model.
Weights are large enough that logits differ clearly between tokens, and norms' weights differ from
one, so that a test notices a missing factor.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.data import TextSource
from bitsweep.models import Model, ModelSource
from bitsweep.models import load as load_source

VOCABULARY = 264  # 256 bytes, <s>, </s>, <pad>, and padding as real models have it

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
_LLAMA: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
}
_GPT: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}

# name: (model_type, what its configuration says beyond _COMMON)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_LLAMA, "tie_word_embeddings": False}),
    "llama_tied": ("llama", {**_LLAMA, "tie_word_embeddings": True}),
    "mistral": ("mistral", _LLAMA),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", _LLAMA),
    "gemma2": ("gemma2", _LLAMA),
    "gemma3": ("gemma3_text", _LLAMA),
    "phi": ("phi", {**_GPT, "intermediate_size": 256}),
    "phi3": ("phi3", {**_LLAMA, "sliding_window": None}),
    "gpt2": ("gpt2", {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt_neox": ("gpt_neox", {**_GPT, "intermediate_size": 256}),
    "opt": ("opt", {**_GPT, "ffn_dim": 256, "word_embed_proj_dim": 128}),
    "opt_post_norm": (
        "opt",
        {**_GPT, "ffn_dim": 256, "word_embed_proj_dim": 64, "do_layer_norm_before": False},
    ),
    "bloom": ("bloom", {"hidden_size": 128, "n_layer": 2, "n_head": 4}),
    "falcon": ("falcon", _GPT),
    "glm": ("glm", {**_LLAMA, "attention_bias": True}),
    "glm4": ("glm4", {**_LLAMA, "attention_bias": True}),
    "olmo2": ("olmo2", _LLAMA),
    "granite": ("granite", _LLAMA),
    "starcoder2": ("starcoder2", _LLAMA),
    "stablelm": ("stablelm", _LLAMA),
    "gptj": ("gptj", {"n_embd": 128, "n_layer": 2, "n_head": 4, "rotary_dim": 16}),
    "gpt_bigcode": ("gpt_bigcode", {"n_embd": 128, "n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 128, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}),
    "cohere": ("cohere", _LLAMA),
    "smollm3": ("smollm3", _LLAMA),
}


def build(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random instance of ``name``; ``overrides`` are keys of its configuration."""
    model_type, keys = ARCHITECTURES[name]
    config = AutoConfig.for_model(model_type, **{**_COMMON, **keys, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                else:
                    parameter.copy_(torch.randn_like(parameter) * min(parameter.shape) ** -0.5)
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, then ``<s>``, ``</s>`` and ``<pad>``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def save(name: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write a random instance of ``name`` into ``folder`` (made if missing); returns it."""
    logging.disable_progress_bar()
    build(name, seed, **overrides).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return Path(folder)


def source(name: str, folder: Path, **options: Any) -> ModelSource:
    """A ModelSource of a freshly saved instance; ``options`` are ModelSource's fields."""
    return ModelSource(name=name, path=str(save(name, Path(folder) / name)), **options)


def load(name: str, folder: Path, **options: Any) -> Model:
    """A loaded instance of ``name``, kept below ``folder``."""
    return load_source(source(name, folder, **options), Artifacts(None))


def letters(folder: Path, count: int, windows: int, window: int) -> CalibrationSpec:
    """``windows`` of ``window`` tokens of ``count`` random letters, a token each."""
    path = folder / "text.txt"
    path.write_text("".join(random.Random(0).choices("etaoin shrdlu", k=count)))
    return CalibrationSpec(TextSource("letters", str(path)), windows=windows, window=window)


def sentences(model: Model, folder: Path) -> Calibration:
    """``model`` on 8 windows of 64 tokens of two short clauses, again and again."""
    path = folder / "text.txt"
    path.write_text("The dog ran to the sea, and a cat sat on a mat. " * 20)
    spec = CalibrationSpec(TextSource("text", str(path)), windows=8, window=64)
    return Calibration(model, spec, Artifacts(None))


def logits(model: Model) -> Tensor:
    """Of the tokens 0 to 63."""
    with torch.no_grad():
        found: Tensor = model.module(torch.arange(64).view(1, 64)).logits
    return found


llama = partial(save, "llama")
llama_tied = partial(save, "llama_tied")
gpt2 = partial(save, "gpt2")
