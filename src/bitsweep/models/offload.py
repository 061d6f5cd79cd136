"""Blocks that live on the CPU and visit the device, for a GPU smaller than the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def visiting(block: nn.Module, device: torch.device) -> Iterator[None]:
    """Hold ``block`` on ``device`` inside the ``with``; afterwards its tensors are what they were.

    The tensors on the CPU are kept meanwhile, so the way back copies nothing but what is new.
    """
    away = [(tensor, tensor.data) for tensor in _tensors(block) if tensor.device != device]
    if not away:
        yield
        return
    home = away[0][1].device
    with torch.inference_mode(False):  # a parameter cannot hold an inference tensor
        for tensor, data in away:
            tensor.data = data.to(device)
        block.to(device)  # quantized layers, whose codes are no parameters
    try:
        yield
    finally:
        with torch.inference_mode(False):
            for tensor, data in away:
                tensor.data = data
            block.to(home)


def live_on_cpu(module: nn.Module, blocks: list[str], device: torch.device) -> None:
    """Keep ``blocks`` on the CPU and all else on ``device``; a block visits it when it is called.

    The hooks hold no state, so that copies of the model have their own blocks visit.
    """
    inner = [module.get_submodule(name) for name in blocks]
    inside = {id(tensor) for block in inner for tensor in _tensors(block)}
    for tensor in _tensors(module):
        if id(tensor) not in inside:
            tensor.data = tensor.data.to(device)
    for block in inner:
        block.register_forward_pre_hook(_Arrive(device))
        block.register_forward_hook(_leave, always_call=True)


class _Arrive:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, block: nn.Module, args: Any) -> None:
        visit = visiting(block, self.device)
        visit.__enter__()
        block.__dict__.setdefault("_visits", []).append(visit)


def _leave(block: nn.Module, args: Any, output: Any) -> None:
    block.__dict__["_visits"].pop().__exit__(None, None, None)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
