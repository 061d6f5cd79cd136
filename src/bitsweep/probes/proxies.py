"""Cheap guesses of what quantizing costs, to hold against the measured loss.

From the full-precision model's inputs and gradients on calibration text; the quantized model is
not run. With ``D = Q - W`` of each quantized layer, summed over the layers:

- ``hessian_error``: ``tr(D H D^T)``, ``H = X^T X / tokens``, the squared error of the layer's
  output per token, which GPTQ minimises (arXiv 2210.17323, equation 1);
- ``gradient_error``: ``sum |g D|`` with the mean gradient g of the loss, its first-order change
  were no two errors to cancel;
- ``fisher_error``: ``1/2 sum E[g^2] D^2``, second order with the Fisher information's diagonal for
  the Hessian of the loss (SqueezeLLM, Kim et al. 2023, arXiv 2306.07629, equation 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from bitsweep import data
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.calibration.statistics import Hessian
from bitsweep.data import Data, Reference
from bitsweep.methods import tied_embedding
from bitsweep.probes import check_counts
from bitsweep.probes.error import moved, weight_of
from bitsweep.record import Kind, Measurement, Metric

if TYPE_CHECKING:
    from bitsweep.models import Model

NAMES = ("hessian_error", "gradient_error", "fisher_error")


@dataclass(frozen=True)
class Proxies:
    """``windows`` of the data's own calibration text, in the data's window, drawn by ``seed``.

    A window's gradient is that of its mean loss per token; ``E[g^2]`` is over windows. Gradients
    are kept in memory (8 bytes a weight) as long as the sweep lasts, the Hessians on disk.
    """

    windows: int = 16
    seed: int = 0

    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quality"

    def __post_init__(self) -> None:
        check_counts("proxies", self, "windows")

    def identity(self, data: Data, artifacts: Artifacts) -> dict[str, Any]:
        text = data.calibration and data.calibration.identity(artifacts)
        options = {"windows": self.windows, "seed": self.seed, "window": data.window}
        return {**options, "text": text}

    def __call__(self, model: Model, reference: Reference) -> Measurement:
        full, source = reference.unrounded, reference.data.calibration
        layers = [] if model.plan is None else list(model.plan.layers)
        layers = [name for name in layers if tied_embedding(model, name) is None]
        why = None if layers else "no layer is quantized"
        if source is None:
            why = f"data={reference.data.name} has no calibration text"
        why = why or moved(model, full)
        if why is not None or source is None:
            return Measurement(
                [Metric(name, None, "", "lower", name, reason=why) for name in NAMES]
            )
        window = reference.data.window_of(model)
        cut = data.windows(data.tokens(source, model, reference.artifacts), window)
        count = min(self.windows, len(cut))
        spec = CalibrationSpec(source, count, window, self.seed)
        calibration = Calibration(full, spec, reference.artifacts)
        errors = {
            name: (weight_of(model, full, name) - full.weight(name).float()).to(full.device)
            for name in layers
        }
        values = _gradient_errors(full, calibration, errors)
        values["hessian_error"] = sum(
            _hessian_error(full, calibration, name, error) for name, error in errors.items()
        )
        tail = (
            f"calibration:{source.name}|sha:{calibration.text_sha256[:12]}|windows:{count}"
            f"|window:{window}|seed:{self.seed}|v{self.version}"
        )
        return Measurement(
            [Metric(name, values[name], "", "lower", f"{name}|{tail}") for name in NAMES]
        )


def _hessian_error(full: Model, calibration: Calibration, name: str, error: Tensor) -> float:
    """``tr(D H D^T)``; an embedding's input is one-hot, so its H is the tokens' frequency."""
    layer = full.layers[name]
    if layer.kind == "embedding":
        tokens = calibration.tokens.flatten()
        frequency = torch.bincount(tokens, minlength=len(error)).to(error) / len(tokens)
        return float((frequency * error.square().sum(1)).sum(dtype=torch.float64))
    index = len(full.blocks) if layer.block is None else layer.block
    for names, hessian in calibration.full_precision(index, Hessian).items():
        if name in names:
            return float(((error @ hessian.to(error)) * error).sum(dtype=torch.float64))
    return 0.0  # the text never reaches it


def _gradient_errors(
    full: Model, calibration: Calibration, errors: dict[str, Tensor]
) -> dict[str, float]:
    key = {
        "checkpoint": full.content,
        "dtype": full.source.dtype,
        "windows": calibration.identity["sha256"],
    }
    found = calibration.artifacts.remember(
        "gradients", key, lambda: gradients(full, calibration.tokens)
    )
    first = [(found[f"mean {name}"] * error).abs().sum() for name, error in errors.items()]
    second = [(found[f"square {name}"] * error.square()).sum() for name, error in errors.items()]
    return {
        "gradient_error": float(torch.stack(first).sum(dtype=torch.float64)),
        "fisher_error": float(torch.stack(second).sum(dtype=torch.float64)) / 2,
    }


@torch.enable_grad()
def gradients(model: Model, windows: Tensor) -> dict[str, Tensor]:
    """``mean NAME`` and ``square NAME`` ``(out, in)`` float32 of the gradient of each layer.

    Over ``windows`` int64 ``(n, window)``, of the mean loss of one window each. The model's own
    parameters are left as they are: gradients go to views of them.
    """
    names = [name for name in model.layers if tied_embedding(model, name) is None]
    leaves = {
        key: model.module.get_parameter(key).detach().requires_grad_()
        for key in (f"{name}.weight" for name in names)
    }
    found: dict[str, Tensor] = {}
    for window in windows.to(model.device):
        output = functional_call(
            model.module, leaves, kwargs={"input_ids": window[None], "use_cache": False}
        )
        logits = output.logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, window[1:])
        for name, gradient in zip(
            names, torch.autograd.grad(loss, [*leaves.values()]), strict=True
        ):
            own = (gradient.t() if model.layers[name].kind == "conv1d" else gradient).float()
            for kind, value in (("mean", own), ("square", own.square())):
                share = value / len(windows)
                key = f"{kind} {name}"
                found[key] = found[key] + share if key in found else share
    return found
