"""Who writes to the residual stream and who reads it: what a rotation of it has to follow.

Found from the traced dataflow. The stream is a sum of outputs of embeddings and linear layers,
scaled by plain numbers at most (Granite); it is read through norms. Where anything else happens on
it, the model can not be rotated exactly, and :func:`find` says what that is.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitsweep.errors import Refused
from bitsweep.models import Model
from bitsweep.models.norms import norm_kind
from bitsweep.models.trace import Stamps, Trace, is_norm, join, stopped, trace

# fmt: off
_KEEPS = frozenset((
    "view", "reshape", "_unsafe_view", "_reshape_alias", "flatten", "transpose", "permute",
    "expand", "unsqueeze", "squeeze", "clone", "contiguous", "_to_copy", "to", "alias", "detach",
    "lift_fresh", "slice", "select", "index", "dropout", "native_dropout", "neg",
))
"""Operations that leave the stream's channels what they are."""
# fmt: on


@dataclass(frozen=True)
class Stream:
    """The residual stream of a model, ``width`` channels.

    ``writers``: embeddings and linear layers whose outputs are added up. ``norms``: by name, the
    linear layers that read the stream through it. ``direct``: linear layers that read it as it is.
    ``embedded``: norms right behind an embedding that is the only one, by that embedding (BLOOM):
    a function of the token alone. ``centred``: its norms are LayerNorms.
    """

    width: int
    writers: tuple[str, ...]
    norms: dict[str, tuple[str, ...]]
    direct: tuple[str, ...]
    embedded: dict[str, str]
    centred: bool


def find(model: Model) -> Stream:
    """The residual stream of ``model``, which may be a skeleton.

    Raises:
        Refused: something happens on it that no folded rotation can follow; says what.
    """
    module = _on_meta(model)
    traced = trace(module, rule=_combines)
    modules = dict(module.named_modules())
    first = next(name for name in traced.order if name.startswith(f"{model.blocks[0]}."))
    found = {name for name, _ in traced.inputs[first]}
    readers: list[str] = []
    while True:
        readers = [n for n in traced.order if found & {name for name, _ in traced.inputs[n]}]
        grown = found | {name for n in readers for name, _ in traced.inputs[n]}
        if grown == found:
            break
        found = grown
    for reader in readers:
        _check_sum(traced.inputs[reader], reader)
    embedded = {}
    for name in [n for n in traced.order if n in found and is_norm(modules[n])]:
        embedding = _embedding_before(name, traced, modules)
        if embedding is None:
            raise Refused(_post_norm(model, name))
        embedded[name] = embedding
    writers = [embedded.get(n, n) for n in traced.order if n in found]
    norms = {n: _readers(n, traced, modules, model) for n in readers if is_norm(modules[n])}
    kinds = {name: norm_kind(modules[name]) for name in norms}
    direct = tuple(name for name in readers if name not in norms)
    centred = _all_centre({name: kind is None or kind.centres for name, kind in kinds.items()})
    for name, kind in kinds.items():
        if kind is None:
            raise Refused(f"{name} is neither a LayerNorm nor an RMS norm")
    if centred and direct:
        raise Refused(f"{direct[0]} reads the residual stream without a LayerNorm, so its mean")
    weight = modules[writers[0]].get_parameter("weight")
    width = weight.shape[0 if isinstance(modules[writers[0]], nn.Linear) else 1]
    return Stream(width, tuple(writers), norms, direct, embedded, centred)


def _combines(operation: str, tensors: list[Tensor], operands: list[Stamps]) -> Stamps:
    """Stamps with whether the output is a sum of what the nodes made, each times one number."""
    constants = [t for t, stamps in zip(tensors, operands, strict=True) if not stamps]
    plain = all(constant.numel() == 1 for constant in constants)
    if operation in _KEEPS:
        return join(operands)
    if operation in ("add", "sub") and plain:
        return join(operands)
    one = sum(map(bool, operands)) == 1
    if plain and one and (operation == "mul" or (operation == "div" and operands[0])):
        return join(operands)
    return stopped(join(operands))


def _on_meta(model: Model) -> nn.Module:
    """``model.module`` without weights, its attention written out, as the skeleton's is."""
    if all(parameter.is_meta for parameter in model.module.parameters()):
        return model.module
    module = model.copy().module
    for child in module.modules():  # of blocks that visit a GPU
        child._forward_pre_hooks.clear()
        child._forward_hooks.clear()
    module.config._attn_implementation = "eager"
    return module.to("meta")


def _check_sum(stamps: Stamps, reader: str) -> None:
    for (writer, part), combined in stamps.items():
        if not combined or part:
            raise Refused(
                f"between {writer} and {reader} the residual stream is more than a sum, "
                "so a rotation of it can not be folded into the weights"
            )


def _embedding_before(norm: str, traced: Trace, modules: dict[str, nn.Module]) -> str | None:
    """The embedding of which ``norm`` is the only reader, and which is all that it reads."""
    (name, part), *others = traced.inputs[norm]
    shared = any(
        name in {n for n, _ in traced.inputs[node]} for node in traced.order if node != norm
    )
    module = modules[name]
    plain = isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward
    return name if plain and traced.inputs[norm][name, part] and not (others or shared) else None


def _readers(
    norm: str, traced: Trace, modules: dict[str, nn.Module], model: Model
) -> tuple[str, ...]:
    """The linear layers that read ``norm``'s output, which nothing else may."""
    readers = [n for n in traced.order if norm in {name for name, _ in traced.inputs[n]}]
    for reader in readers:
        if traced.inputs[reader] != {(norm, 0): True}:
            raise Refused(_post_norm(model, norm))
        if not isinstance(modules[reader], nn.Linear | Conv1D):
            raise Refused(f"{reader}, no linear layer, reads what {norm} makes")
    return tuple(readers)


def _post_norm(model: Model, norm: str) -> str:
    return (
        f"{model.source.name} has post-norm blocks: what {norm} makes is added to the residual "
        "stream, and a rotation can not pass its weight; leave rotate out for this model"
    )


def _all_centre(centres: dict[str, bool]) -> bool:
    if len(set(centres.values())) > 1:
        one, other = (next(n for n, c in centres.items() if c is kind) for kind in (True, False))
        raise Refused(f"{one} subtracts the mean of the residual stream, {other} does not")
    return any(centres.values())
