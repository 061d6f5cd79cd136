"""Which matrix plays which role, found from the traced dataflow, for every architecture alike.

No table of families: in each decoder block, the linear layers whose outputs meet in a softmax (and
those that only they consume, as in low-rank attention) are query, key and value; the one that
consumes attention's result is ``attention.out``; of the rest, one that consumes others of the rest
is ``ffn.down``, and what it consumes is ``ffn.up`` or, behind the nonlinearity, ``ffn.gate``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bitsweep.errors import UserError
from bitsweep.models.source import Kind, Layer, Role
from bitsweep.models.trace import ATTENTION, Stamps, Trace, is_norm, trace


@dataclass(frozen=True)
class Anatomy:
    """What a model is made of.

    ``stages``: per block the names of its linear layers, in groups that can be quantized together:
    no layer of a group sees another's output.
    """

    layers: dict[str, Layer]
    blocks: list[str]
    stages: list[list[list[str]]]


def dissect(module: PreTrainedModel, path: str) -> Anatomy:
    """The anatomy of a model on the meta device; layers stand in order of execution.

    Position embeddings, norms and projections between an embedding and the blocks (OPT-350m) are
    no layers: they stay as they are. So do modules that a text's forward pass never reaches.

    Raises:
        UserError: not a decoder of attention and feed-forward blocks, or a mixture of experts
            (whose experts are 3-D parameters; out of scope for now). Names ``model.path``.
    """
    blocks = _find_blocks(module, path)
    _refuse_experts(module, blocks, path)
    try:
        traced = trace(module)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"model.path={path}: cannot follow {type(module).__name__}'s forward pass ({reason}); "
            "bitsweep takes decoder-only language models"
        ) from error
    graph = _Graph(module, traced, blocks)
    in_blocks = graph.roles()
    for index, block in enumerate(blocks):
        held = {role for name, role in in_blocks.items() if graph.block[name] == index}
        for role in ("attention.out", "ffn.down"):
            if role not in held:
                raise UserError(
                    f"model.path={path}: {block} of {type(module).__name__} has no {role}; "
                    "bitsweep takes decoders whose blocks hold attention and feed-forward layers"
                )
    roles = {**in_blocks, **_ends(module, path)}
    layers = {
        name: Layer(
            name=name,
            role=roles[name],
            block=graph.block.get(name),
            shape=_shape(graph.modules[name]),
            kind=_kind(graph.modules[name]),
            source=graph.source(name),
        )
        for name in traced.order
        if name in roles
    }
    return Anatomy(layers, blocks, graph.stages(len(blocks)))


class _Graph:
    """The traced nodes as a graph: who comes right before whom."""

    def __init__(self, module: PreTrainedModel, traced: Trace, blocks: list[str]) -> None:
        self.trace = traced
        self.modules = dict(module.named_modules())
        self.inside = {
            name: index
            for index, block in enumerate(blocks)
            for name in traced.order
            if name.startswith(f"{block}.")
        }
        self.block = {n: i for n, i in self.inside.items() if _is_linear(self.modules[n])}
        self.immovable = {
            stamp
            for stamps in traced.inputs.values()
            for stamp, passes in stamps.items()
            if not passes
        }

    def before(self, name: str, across_residual: bool) -> Stamps:
        """The stamps on the input of a node, and through norms, on those norms' inputs.

        A norm that reads the residual stream sees nodes of other blocks too. One inside attention
        or feed-forward (BitNet's, Qwen 3's) does not. ``across_residual``: look through both.
        """
        seen: Stamps = {}
        todo = [name]
        while todo:
            node = todo.pop()
            stamps = self.trace.inputs[node]
            if node != name and not across_residual and self._reads_residual(node):
                continue
            for stamp, passes in stamps.items():
                if stamp not in seen:
                    seen[stamp] = passes
                    if stamp[0] in self.modules and is_norm(self.modules[stamp[0]]):
                        todo.append(stamp[0])
        return seen

    def feeders(self, name: str, across_residual: bool = False) -> list[str]:
        """The linear layers of the same block that come right before this one."""
        block = self.block[name]
        nodes = dict.fromkeys(node for node, _ in self.before(name, across_residual))
        return [node for node in nodes if self.block.get(node) == block]

    def _reads_residual(self, name: str) -> bool:
        nodes = {node for node, _ in self.trace.inputs[name]} - {ATTENTION}
        return any(self.inside.get(node) != self.inside.get(name) for node in nodes)

    def roles(self) -> dict[str, Role]:
        """The role of each linear layer that lies in a block."""
        outs = [
            name
            for name in self.block
            if any(node == ATTENTION for node, _ in self.before(name, across_residual=False))
        ]
        roles: dict[str, Role] = dict.fromkeys(outs, "attention.out")
        todo = list(outs)
        while todo:
            for name in self.feeders(todo.pop()):
                if name not in roles:
                    roles[name] = "attention.qkv"
                    todo.append(name)
        rest = [name for name in self.block if name not in roles]
        for name in rest:
            fed_by = [node for node in self.feeders(name) if node in rest]
            if fed_by:
                roles[name] = "ffn.down"
                before = self.before(name, across_residual=False)
                passing = {node for (node, _), passes in before.items() if passes}
                for node in fed_by:
                    is_gate = len(fed_by) > 1 and node not in passing
                    roles.setdefault(node, "ffn.gate" if is_gate else "ffn.up")
        return {name: roles.get(name, "ffn.up") for name in self.block}

    def stages(self, count: int) -> list[list[list[str]]]:
        """Per block, its linear layers by how many of the block's layers must run before them."""
        depth: dict[str, int] = {}
        stages: list[list[list[str]]] = [[] for _ in range(count)]
        for name in (node for node in self.trace.order if node in self.block):
            feeders = self.feeders(name, across_residual=True)
            depth[name] = 1 + max((depth[node] for node in feeders), default=-1)
            groups = stages[self.block[name]]
            while len(groups) <= depth[name]:
                groups.append([])
            groups[depth[name]].append(name)
        return stages

    def source(self, name: str) -> str | None:
        """The one node through which a factor per channel can be moved; see ``Layer.source``."""
        passing = [stamp for stamp, passes in self.trace.inputs[name].items() if passes]
        if len({node for node, _ in passing}) != 1 or isinstance(
            self.modules[passing[0][0]], nn.Embedding
        ):
            return None
        # A norm whose output also joins the residual stream: a factor could not follow it there.
        return None if self.immovable & set(passing) else passing[0][0]


def _find_blocks(module: PreTrainedModel, path: str) -> list[str]:
    """The names of the decoder blocks: the list that is as long as the model is deep."""
    config = module.config.get_text_config(decoder=True)
    depth: int = getattr(config, "num_hidden_layers", 0)
    found = [
        name
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList)
        and len(child) == depth > 0
        and any(_is_linear(inner) for inner in child.modules())
    ]
    if getattr(config, "is_encoder_decoder", False) or not found:
        raise UserError(
            f"model.path={path}: {type(module).__name__} is not a decoder-only language model with "
            "a list of blocks; bitsweep takes those only"
        )
    return [f"{found[0]}.{index}" for index in range(depth)]


def _refuse_experts(module: PreTrainedModel, blocks: list[str], path: str) -> None:
    for block in blocks:
        for name, parameter in module.get_submodule(block).named_parameters():
            if "expert" in name:
                shape = "x".join(map(str, parameter.shape))
                raise UserError(
                    f"model.path={path}: {block}.{name} ({shape}) holds experts; mixtures of "
                    "experts are not supported yet, take a dense model"
                )


def _ends(module: PreTrainedModel, path: str) -> dict[str, Role]:
    """Embedding and head by name."""
    names = {id(child): name for name, child in module.named_modules()}
    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise UserError(
            f"model.path={path}: {type(module).__name__} has no embedding and linear head; "
            "bitsweep takes decoder-only language models"
        )
    return {names[id(embedding)]: "embedding", names[id(head)]: "head"}


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, Conv1D):
        return "conv1d"
    return "embedding" if isinstance(module, nn.Embedding) else "linear"


def _shape(module: nn.Module) -> tuple[int, int]:
    """(out_features, in_features); ``Conv1D`` keeps its weight the other way round."""
    rows, columns = module.get_parameter("weight").shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)
