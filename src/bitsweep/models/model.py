"""A loaded checkpoint whose layers can be looked up, replaced and shared."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from bitsweep.linear import Quantized
from bitsweep.models.offload import visiting
from bitsweep.models.roles import Anatomy
from bitsweep.models.source import Layer, ModelSource
from bitsweep.spec import Plan


@dataclass
class Model:
    """A decoder-only language model with the names of its parts.

    ``checkpoint`` is a SHA-256 over the weights' content and the configuration, independent of
    where they lie; ``tokenizer_sha256`` the same for the tokenizer. ``device`` is where the model
    runs. ``tied``: embedding and head are one tensor. ``plan`` is None until it is quantized.
    ``content`` names the full-precision weights as they are now: the checkpoint, and after each
    transform a digest with that transform in it. ``masks`` bool ``(out, in)`` by layer: where it
    is False the weight was pruned, is 0, and stays 0 whatever is done to the layer afterwards.
    ``transformed`` are the names of the transforms done to it, in order. ``folded``, by layer, are
    the factors of rows ``(out,)`` and columns ``(in,)`` that :mod:`bitsweep.models.fold` gave its
    weight.
    A skeleton is a Model whose ``module`` lies on the meta device.
    A shape (``source.random_weights``) has no ``tokenizer``, as no text ever meets it.
    """

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: ModelSource
    checkpoint: str
    tokenizer_sha256: str
    anatomy: Anatomy
    tied: bool
    device: torch.device
    plan: Plan | None = None
    content: str = ""
    masks: dict[str, Tensor] = field(default_factory=dict)
    transformed: tuple[str, ...] = ()
    folded: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.content = self.content or self.checkpoint

    @property
    def layers(self) -> dict[str, Layer]:
        """Quantizable layers in order of execution: the embedding first, the head last."""
        return self.anatomy.layers

    @property
    def blocks(self) -> list[str]:
        """Module names of the decoder blocks, in order."""
        return self.anatomy.blocks

    @property
    def parameters(self) -> int:
        """How many parameters the checkpoint has, packed or not; a tied head counts once."""
        packed = {id(m.quant): m.quant for m in self.module.modules() if isinstance(m, Quantized)}
        floating = sum(parameter.numel() for parameter in self.module.parameters())
        return floating + sum(quant.shape.numel() for quant in packed.values())

    @property
    def max_positions(self) -> int:
        """Context length in tokens, as the configuration says; 2048 where it says nothing.

        BLOOM, whose positions are biases (ALiBi), says nothing; it was trained on 2048.
        """
        config = self.module.config.get_text_config(decoder=True)
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            if isinstance(value := getattr(config, key, None), int) and value > 0:
                return value
        return 2048

    def get(self, name: str) -> nn.Module:
        """The module of that name."""
        return self.module.get_submodule(name)

    def replace(self, name: str, module: nn.Module) -> None:
        """Put ``module`` where ``name`` is; other copies of this model keep what they have."""
        self.module.set_submodule(name, module)

    def weight(self, name: str) -> Tensor:
        """The weight of a layer as (out_features, in_features), a view; never write to it.

        A quantized layer answers with its dequantized weight.
        """
        module = self.get(name)
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.t() if isinstance(module, Conv1D) else weight

    def by_block(self, names: Iterable[str]) -> dict[int, list[str]]:
        """``names`` of layers by the block they are in; under ``len(blocks)`` those in none."""
        found: dict[int, list[str]] = {}
        for name in names:
            block = self.layers[name].block
            found.setdefault(len(self.blocks) if block is None else block, []).append(name)
        return found

    def sequential(self, block: int) -> list[list[str]]:
        """The linear layers of a block in the order in which GPTQ visits them ("true sequential").

        Groups run one after another; the layers of one group do not see each other's output:
        ``[[q, k, v], [o], [gate, up], [down]]``, or where attention and feed-forward run in
        parallel (Phi, GPT-NeoX) ``[[q, k, v, fc1], [dense, fc2]]``.
        """
        return [list(group) for group in self.anatomy.stages[block]]

    def copy(self) -> Model:
        """A second model of the same tensors: only modules, hooks and configuration are new."""
        shared: dict[int, Any] = {}
        for module in self.module.modules():
            for value in [*module._parameters.values(), *module._buffers.values()]:
                if value is not None:
                    shared[id(value)] = value
            for value in vars(module).values():
                if _holds_tensors(value):
                    shared[id(value)] = value
        module = copy.deepcopy(self.module, shared)
        return replace(self, module=module, masks=dict(self.masks), folded=dict(self.folded))

    @contextmanager
    def block_on_device(self, index: int) -> Iterator[None]:
        """Keep block ``index`` on ``device`` inside the ``with``; nothing moves if it lives there.

        A block that stays on the CPU also comes by itself whenever it runs, once per call; this
        keeps it there for many calls. Layers replaced inside follow the block back.
        """
        with visiting(self.get(self.blocks[index]), self.device):
            yield


def untie(module: PreTrainedModel) -> None:
    """Give a tied head a matrix of its own, equal to the embedding's, that nothing ties again."""
    if is_tied(module):
        head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
        module.config.tie_word_embeddings = False


def is_tied(module: PreTrainedModel) -> bool:
    """Whether embedding and head are one tensor, whatever the configuration says."""
    return module.get_output_embeddings().weight is module.get_input_embeddings().weight


def _holds_tensors(value: Any) -> bool:
    """A tensor, or a value made of tensors (a quantized weight): shared by copies, not cloned."""
    if isinstance(value, Tensor):
        return True
    fields = getattr(value, "__dict__", None)
    if fields is None or isinstance(value, nn.Module | type):
        return False
    return any(isinstance(item, Tensor) for item in fields.values())
