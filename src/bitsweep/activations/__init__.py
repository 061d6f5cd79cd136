"""Inputs of layers, quantized before they are multiplied.

Numbers are quantized and at once replaced by what their codes stand for, in float32 whatever the
model computes in; a packed kernel that multiplies the codes gives the same product up to the order
of its sums.

* **Dynamic** parameters come from the numbers at hand: of each token by itself (``per=token``, in
  groups if asked), so that no token's result depends on what shares its batch, or of all numbers
  of the call (``per=tensor``, as torch's ``quantize_dynamic``): of the whole batch, later tokens
  included, which makes a perplexity of full windows flatter than decoding is.
* **Static** ones are found once on calibration text: of the whole tensor, or of each of its columns
  (``per=channel``: better, though no integer kernel can multiply it without folding the scales into
  the weight). Blocks are walked in order through the model as it stands: weights quantized, inputs
  of the blocks before quantized as well, those of the block itself not yet. Weights are chosen
  first (GPTQ sees inputs in full precision, as in QuaRot's and llm-compressor's code).
* **Adaptive**: each token takes the narrowest width at which it is represented well enough.
"""

from __future__ import annotations

from typing import cast

import torch

from bitsweep import formats
from bitsweep.activations.quantizer import InputQuantizer
from bitsweep.activations.ranges import Sample, static_params
from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.linear import QuantLinear
from bitsweep.models import Model
from bitsweep.spec import PER_CHANNEL, InputSpec, Plan, QuantSpec


def skip(plan: Plan, model: Model) -> str | None:
    """Why the inputs that ``plan`` asks for cannot be made (with the key to change), or None."""
    for name, layer in plan.layers.items():
        if layer.input is not None:
            reason = _skip(layer.input, name, model.layers[name].shape[1])
            if reason is not None:
                return reason
    return None


def _skip(spec: InputSpec, name: str, in_features: int) -> str | None:
    quant, static = spec.quant, spec.range != "dynamic"
    if spec.adaptive and (static or spec.per != "token"):
        return "input.adaptive: a token that chooses its width has input.per=token range=dynamic"
    if spec.per == "token" and static and (spec.range != "minmax" or not shares(quant)):
        return (
            f"input.range={spec.range}: a token's range shows when it comes; "
            "use input.per=tensor or channel, or input.range=dynamic"
        )
    if spec.per == "channel" and not static:
        return (
            "input.per=channel: a column's range over all tokens comes from calibration; "
            "use input.range=minmax, percentile or mse"
        )
    if spec.per != "token" and quant.group_size != PER_CHANNEL:
        return f"input.group_size={quant.group_size}: input.per={spec.per} has no groups; use -1"
    for width in [spec.at(bits).quant for bits in spec.adaptive] or [quant]:
        reason = formats.get(width.format).skip(width) or _unfit(width, spec)
        if reason is not None:
            return f"input.{reason}"
    if not quant.fits(in_features):
        return (
            f"input.group_size={quant.group_size} does not divide in_features={in_features} of "
            f"{name}; use -1 (the whole token) or a divisor"
        )
    return None


def _unfit(quant: QuantSpec, spec: InputSpec) -> str | None:
    """Why ``quant``, a format of weights, cannot be fitted as ``spec`` says, or None."""
    if formats.get(quant.format).vector(quant) > 1:
        return f"format={quant.format}: codes of several numbers at once are for weights"
    if spec.range == "dynamic" or spec.per == "token":
        if learned(quant):
            return (
                f"format={quant.format}: learned on calibration text; "
                "use input.per=tensor input.range=minmax"
            )
        if spec.range == "dynamic" and shares(quant):
            return (
                f"format={quant.format}: has a parameter of the whole tensor, which calibration "
                "finds; use input.range=minmax"
            )
    return None


def shares(quant: QuantSpec) -> bool:
    """Whether numbers of this format have parameters of the whole tensor beside their groups'."""
    return bool(formats.get(quant.format).shared(torch.linspace(-1, 1, 64).view(1, 64), quant))


def learned(quant: QuantSpec) -> bool:
    """Whether the format is fitted at leisure, by a search that no token can wait for."""
    return "codebook" in formats.get(quant.format).params_bits(quant)


def install(model: Model, plan: Plan, calibration: Calibration) -> None:
    """Give each layer of ``model``, quantized, the input quantizer that ``plan`` names.

    A layer that has one already (of a library that quantizes inputs by itself) keeps it.

    Raises:
        UserError: a layer with static ranges that the calibration text never reaches.
    """
    wanted: dict[str, InputSpec] = {}
    for name, layer in plan.layers.items():
        if layer.input is not None and _layer(model, name).input_quantizer is None:
            wanted[name] = layer.input
    for name, spec in wanted.items():
        if spec.range == "dynamic":
            _layer(model, name).input_quantizer = InputQuantizer(spec)
    static = model.by_block(name for name, spec in wanted.items() if spec.range != "dynamic")
    for block in calibration.blocks(model) if static else ():
        names = static.pop(block.index, [])
        samples = block.observe(names, Sample)
        for name in names:
            if name not in samples:
                raise UserError(
                    f"input.range={wanted[name].range}: the calibration text never reaches {name}; "
                    "use more calibration.windows, or input.range=dynamic"
                )
            params = static_params(samples[name], wanted[name])
            home = _layer(model, name).quant.codes.device
            _layer(model, name).input_quantizer = InputQuantizer(wanted[name], params).to(home)
        if not static:
            break


def _layer(model: Model, name: str) -> QuantLinear:
    return cast(QuantLinear, model.get(name))
