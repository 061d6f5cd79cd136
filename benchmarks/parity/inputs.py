"""What every tool is given: the same model, token ids, weights, Hessians and settings."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bitsweep import data, models
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.calibration.statistics import Hessian
from bitsweep.data import TextSource
from bitsweep.models import Model, ModelSource
from bitsweep.probes._forward import scores

WINDOWS, WINDOW, SEED = 64, 512, 0
DRAWS = 3
"""Calibration draws: where chance enters, an implementation is a range and not a number."""
JUDGED = 128
"""Evaluation windows of every quantized model: a third of the text, since all are paired."""


@dataclass(frozen=True)
class Inputs:
    """The calibration's tokens make codes, ``evaluation`` int64 ``(n, window)`` judges them.

    ``text`` is all of the evaluation text's windows, for the anchor of the full-precision model.
    ``layers`` are the linear layers of the decoder's blocks, the head is left alone by all.
    """

    model: Model
    calibration: Calibration
    evaluation: Tensor
    text: Tensor
    layers: tuple[str, ...]
    hessians: dict[str, Tensor]
    artifacts: Artifacts

    def losses(self, weights: dict[str, Tensor], windows: Tensor | None = None) -> Tensor:
        """Summed nats of each window (of ``evaluation``), with these dense weights in place.

        Kept in the work folder by content, so that another run judges only what changed.
        """
        windows = self.evaluation if windows is None else windows
        key = {"weights": sha256(weights), "evaluation": sha256({"tokens": windows})}
        judge = lambda: {"losses": self._judge(weights, windows)}  # noqa: E731
        return self.artifacts.get("losses", key, judge)["losses"]

    def _judge(self, weights: dict[str, Tensor], windows: Tensor) -> Tensor:
        model = self.model.copy()
        for name, weight in weights.items():
            module = copy.copy(model.get(name))
            module._parameters = dict(module._parameters)
            module.weight = nn.Parameter(weight.float().clone(), requires_grad=False)
            model.replace(name, module)
        return scores(model, windows).losses


def load(model_path: Path, text: Path, work: Path) -> Inputs:
    """The checkpoint, its calibration windows, the evaluation windows, full-precision Hessians."""
    artifacts = Artifacts(work / "cache")
    model = models.load(ModelSource(model_path.name, str(model_path)), artifacts)
    train = TextSource("train", str(text / "tinystories_train_head.txt"), fold_newlines=True)
    valid = TextSource("validation", str(text / "tinystories_val_head.txt"), fold_newlines=True)
    calibration = Calibration(model, CalibrationSpec(train, WINDOWS, WINDOW, SEED), artifacts)
    hessians: dict[str, Tensor] = {}
    for index in range(len(model.blocks)):
        for names, value in calibration.full_precision(index, Hessian).items():
            hessians |= dict.fromkeys(names, value)
    windows = data.windows(data.tokens(valid, model, artifacts), WINDOW)
    return Inputs(
        model=model,
        calibration=calibration,
        evaluation=windows[:JUDGED],
        text=windows,
        layers=tuple(layer.name for layer in model.layers.values() if layer.name in hessians),
        hessians=hessians,
        artifacts=artifacts,
    )


def drawn(inputs: Inputs, draw: int) -> Calibration:
    """Another draw of windows from the same text; draw 0 is ``inputs.calibration``."""
    spec = dataclasses.replace(inputs.calibration.spec, seed=SEED + draw)
    return Calibration(inputs.model, spec, inputs.artifacts)


def others(model: Model) -> list[str]:
    """Modules with a weight that are no quantizable layer, and the ends: norms, embedding, head.

    Methods that fold factors into them hand them back.
    """
    held = {name for name, layer in model.layers.items() if layer.block is not None}
    return [
        name
        for name, module in model.module.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and name not in held
    ]


def write(inputs: Inputs, work: Path, settings: dict[str, Any]) -> None:
    """Everything a peer's script reads, below ``work/in``."""
    folder = work / "in"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: inputs.model.weight(name).detach().clone() for name in inputs.layers}
    layers = {f"{name}/weight": weight for name, weight in weights.items()}
    layers |= {f"{name}/hessian": inputs.hessians[name].clone() for name in inputs.layers}
    draws = {f"tokens{draw or ''}": drawn(inputs, draw).tokens for draw in range(DRAWS)}
    save_file(draws, folder / "calibration.safetensors")
    save_file(layers, folder / "layers.safetensors")
    save_file(weights | _random(), folder / "weights.safetensors")
    path = str(Path(inputs.model.source.path).resolve())
    settings = {**settings, "model": path, "layers": inputs.layers, "others": others(inputs.model)}
    (folder / "settings.json").write_text(json.dumps(settings, indent=1))


def sha256(tensors: dict[str, Tensor]) -> str:
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return content.hexdigest()


def _random() -> dict[str, Tensor]:
    """Weights off any grid: stories3M was published as int8, so it meets ties more than others."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(512, 512, generator=generator) * 0.02
    tails = torch.randn(512, 512, generator=generator) ** 3 * 0.01
    return {"random.normal": normal, "random.heavy_tails": tails}
