"""Decoding with a Hugging Face model: prefill a prompt, then one token at a time."""

from __future__ import annotations

import inspect
from collections.abc import Collection

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from bitsweep.engines.protocols import Runner
from bitsweep.models import Model


class TorchRunner:
    """The whole model with a growing key-value cache, layers of any kind inside.

    The head sees the last position only, as it does in generation.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        self.module = module
        self._head = module.get_output_embeddings()
        accepts = inspect.signature(module.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> tuple[Tensor, Cache]:
        """Logits ``(batch, vocabulary)`` after the prompt ``(batch, tokens)``, and its cache."""
        cache = DynamicCache(config=self.module.config)
        return self._step(ids, cache), cache

    @torch.inference_mode()
    def decode(self, ids: Tensor, cache: Cache) -> Tensor:
        """Logits ``(batch, vocabulary)`` after one more token ``(batch, 1)``; ``cache`` grows."""
        return self._step(ids, cache)

    def _step(self, ids: Tensor, cache: Cache) -> Tensor:
        hook = self._head.register_forward_pre_hook(_in_one_piece)
        try:
            output = self.module(
                input_ids=ids, past_key_values=cache, use_cache=True, **self._last_only
            )
        finally:
            hook.remove()
        return output.logits[:, -1]


def _in_one_piece(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The last position of a prompt is a slice, for which torch 2.13 copies the whole matrix of a
    dense head first: 2 s at 128k x 2k in bf16, twenty times the rest of a short prefill.

    It looks at strides only, those of a single row too, which ``contiguous`` leaves as they are.
    """
    return (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])


def cast(model: Model, dtype: torch.dtype) -> Model:
    """A copy of ``model`` with its parameters in ``dtype``; the tensors of ``model`` stay as is.

    Buffers keep their dtype, as when transformers loads a checkpoint in ``dtype``: rotary
    frequencies are float32 there too. Tied parameters stay tied.
    """
    model = model.copy()
    done: dict[int, nn.Parameter] = {}
    for module in model.module.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_floating_point():
                continue
            if id(parameter) not in done:
                value = parameter.detach().to(dtype)
                done[id(parameter)] = nn.Parameter(value, requires_grad=False)
            module._parameters[name] = done[id(parameter)]
    return model


def generate(
    runner: Runner, ids: Tensor, max_new_tokens: int, ends: Collection[int] = ()
) -> Tensor:
    """Greedy continuations ``(batch, new)`` of the prompts ``ids`` ``(batch, tokens)``.

    Stops when every row has met a token of ``ends``; a row that met it earlier is filled up with
    that token. Prompts have one length: nothing is padded, and the checkpoint's own generation
    settings play no part (:mod:`bitsweep.probes._greedy`, which probes use, pads and masks).
    """
    logits, cache = runner.prefill(ids)
    stops = torch.tensor(sorted(ends), dtype=torch.int64, device=ids.device)
    tokens = logits.argmax(-1).to(ids.device)
    written, done = [tokens], torch.isin(tokens, stops)
    while len(written) < max_new_tokens and not bool(done.all()):
        logits = runner.decode(tokens.unsqueeze(1), cache)
        tokens = torch.where(done, tokens, logits.argmax(-1).to(ids.device))
        done |= torch.isin(tokens, stops)
        written.append(tokens)
    return torch.stack(written, dim=1)
