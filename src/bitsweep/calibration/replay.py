"""A decoder run block by block over fixed windows, for every architecture alike.

transformers' models prepare masks and position embeddings before the first block, and may hand each
block its own (sliding and full attention, local and global RoPE). So nothing is guessed: one pass
with a stand-in for every block notes what each is called with. A block is then run by itself on the
hidden states that the blocks before it left, and the part behind the last block by letting its
stand-in answer with them. Caches are off throughout: one left on changes what later passes see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bitsweep.models import Model

BATCH_TOKENS = 4096
"""Tokens of one batch (one window at least): bounds the memory of activations."""

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Replay:
    """The blocks of ``model`` and the hidden states ``(windows, window, hidden)`` between them.

    ``tokens`` int64 ``(windows, window)``. Hidden states wait on the CPU, in batches, and belong to
    the input of the next block to run; ``model``'s layers may be replaced between runs.
    """

    @torch.no_grad()
    def __init__(self, model: Model, tokens: Tensor) -> None:
        self.model = model
        self._tokens = tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))
        self._answers_in_tuples = self._probe()
        self._hidden: list[Tensor] = []
        self._calls: list[list[Call]] = [[] for _ in model.blocks]
        with _stand_ins(model, self._note):
            for batch in self._tokens:
                self._start(batch)

    @torch.no_grad()
    def run(self, index: int, after_batch: Callable[[], None], keep: bool) -> None:
        """Run block ``index``, or for ``len(blocks)`` what lies behind them up to the head.

        ``keep`` makes its outputs the inputs of the next block. ``after_batch`` is called after
        each batch. The head itself is not computed: only hooks on its input see it. A hook that has
        seen enough of a batch calls :meth:`stop`.
        """
        if index == len(self.model.blocks):
            self._run_tail(after_batch)
            return
        with self.model.block_on_device(index):
            block = self.model.get(self.model.blocks[index])
            for i, call in enumerate(self._calls[index]):
                output: Any = None
                with suppress(_Stop):
                    output = _called(block, self._hidden[i].to(self.model.device), call)
                after_batch()
                if keep:
                    self._hidden[i] = (output[0] if isinstance(output, tuple) else output).cpu()

    def stop(self) -> None:
        """Leave the forward pass of this batch: for hooks, and only where outputs are not kept."""
        raise _Stop

    def inputs(self) -> Tensor:
        """Hidden states ``(windows, window, hidden)`` that the next block to run will get."""
        return torch.cat(self._hidden)

    def call(
        self, index: int, hidden: Tensor, windows: Tensor, weights: Mapping[str, Tensor]
    ) -> Tensor:
        """Block ``index`` on ``hidden`` ``(n, window, hidden)``, those of ``windows`` ``(n,)``.

        ``weights`` stand in for parameters of the block, by their name within it. Gradients flow
        where they are enabled. What the model hands a block beside the states (masks, positions)
        is asked of it for just these windows.
        """
        block = self.model.get(self.model.blocks[index])
        with self.model.block_on_device(index):
            arguments = self._arguments(index, windows)
            output = _called(block, hidden.to(self.model.device), arguments, weights)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @torch.no_grad()
    def _arguments(self, index: int, windows: Tensor) -> Call:
        found: list[Call] = []

        def note(at: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if at < index:
                return self._in_form(_hidden(args, kwargs))
            found.append(_open(args, kwargs))
            raise _Stop

        with _stand_ins(self.model, note):
            self._start(torch.cat(self._tokens)[windows])
        return found[0]

    def _run_tail(self, after_batch: Callable[[], None]) -> None:
        batches = iter(self._hidden)

        def answer(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if index < len(self.model.blocks) - 1:
                return self._in_form(_hidden(args, kwargs))
            return self._in_form(next(batches).to(self.model.device))

        head = self.model.module.get_output_embeddings()
        with _stand_ins(self.model, answer), _stopping(head):
            for batch in self._tokens:
                self._start(batch)
                after_batch()

    def _note(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = _hidden(args, kwargs)
        if index == 0:
            self._hidden.append(hidden.cpu())
        call = _open(args, kwargs)
        known = self._calls[index]
        known.append(_shared(call, known[0]) if known else call)
        if index == len(self.model.blocks) - 1:
            raise _Stop
        return self._in_form(hidden)

    def _start(self, batch: Tensor) -> None:
        with suppress(_Stop):
            self.model.module(input_ids=batch.to(self.model.device), use_cache=False)

    def _in_form(self, hidden: Tensor) -> Any:
        return (hidden,) if self._answers_in_tuples else hidden

    def _probe(self) -> bool:
        """Whether blocks answer with a tuple: asked of the first one, on two tokens."""
        found: list[bool] = []

        def look(module: nn.Module, args: Any, output: Any) -> None:
            found.append(isinstance(output, tuple))
            raise _Stop

        hook = self.model.get(self.model.blocks[0]).register_forward_hook(look)
        try:
            self._start(self._tokens[0][:1, :2])
        finally:
            hook.remove()
        return found[0]


class _Stop(Exception):  # noqa: N818 - not an error: the end of the part that is wanted
    """Leaves a forward pass."""


class _StandIn(nn.Module):
    """In place of a block: passes its call to ``act``; other attributes are the block's own."""

    def __init__(self, block: nn.Module, act: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__["block"] = block  # not a submodule: no hook or device of it may be touched
        self.__dict__["act"] = act

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["act"](args, kwargs)


@contextmanager
def _stand_ins(model: Model, act: Callable[..., Any]) -> Iterator[None]:
    """Every block of ``model`` replaced by a stand-in that calls ``act(index, args, kwargs)``."""
    blocks = {name: model.get(name) for name in model.blocks}
    try:
        for index, (name, block) in enumerate(blocks.items()):
            model.replace(name, _StandIn(block, partial(act, index)))
        yield
    finally:
        for name, block in blocks.items():
            model.replace(name, block)


@contextmanager
def _stopping(module: nn.Module) -> Iterator[None]:
    """Forward passes end where ``module`` would begin, after the hooks it already has."""

    def stop(*_: Any) -> None:
        raise _Stop

    hook = module.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        hook.remove()


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _open(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A block's call with the place of the hidden states left open."""
    return ((None, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": None})


def _called(
    block: nn.Module,
    hidden: Tensor,
    call: Call,
    weights: Mapping[str, Tensor] = MappingProxyType({}),
) -> Any:
    """What ``block`` answers; ``weights`` stand in for parameters of these names."""
    args, kwargs = call
    if args:
        args = (hidden, *args[1:])
    else:
        kwargs = {**kwargs, "hidden_states": hidden}
    if not weights:
        return block(*args, **kwargs)
    return functional_call(block, dict(weights), args, kwargs)


def _shared(new: Any, known: Any) -> Any:
    """``new`` with every tensor that equals ``known``'s at its place replaced by that one.

    Masks and position embeddings are the same for every batch; this keeps one of each.
    """
    if type(new) is not type(known):
        return new
    if isinstance(new, Tensor):
        same = new.shape == known.shape and new.dtype == known.dtype and torch.equal(new, known)
        return known if same else new
    if isinstance(new, tuple) and len(new) == len(known):
        return tuple(_shared(a, b) for a, b in zip(new, known, strict=True))
    if isinstance(new, dict) and new.keys() == known.keys():
        return {key: _shared(new[key], known[key]) for key in new}
    return new
