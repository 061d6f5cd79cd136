"""Checkpoint -> Model, and configuration -> skeleton."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from bitsweep.artifacts import Artifacts, plain
from bitsweep.errors import UserError
from bitsweep.models import files, quantized, shapes
from bitsweep.models.drawn import draw
from bitsweep.models.files import Files
from bitsweep.models.model import Model, is_tied, untie
from bitsweep.models.offload import live_on_cpu
from bitsweep.models.roles import Anatomy, dissect
from bitsweep.models.shapes import Shape
from bitsweep.models.source import ModelSource
from bitsweep.spec import Plan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SHARE_OF_GPU = 0.7
"""Of the GPU's free memory the weights may take; the rest is for activations and log-probabilities.
A larger model stays on the CPU and its blocks visit the GPU."""


def load(source: ModelSource, artifacts: Artifacts) -> Model:
    """See :func:`bitsweep.models.load`."""
    bare = skeleton(source, artifacts)
    if source.random_weights:
        return _draw(bare, artifacts)
    found = files.locate(source, weights=True, artifacts=artifacts)
    checkpoint = found.checkpoint(files.digests(found, source, artifacts))
    key = {"source": plain(source), "checkpoint": checkpoint}

    def make() -> Model:
        with torch.random.fork_rng(devices=[]):  # so that a first load leaves no trace in the seed
            module = _read(source, found, bare.plan)
            tied = is_tied(module)
            if bare.plan is not None:
                quantized.install(module, found, source.path, bare.layers)
        if source.untie:
            untie(module)
            tied = False
        _place(module, bare.anatomy, bare.device)
        _check_causal(module, bare.device, source.path)
        return replace(bare, module=module, checkpoint=checkpoint, tied=tied)

    return artifacts.remember("model", key, make)


def skeleton(source: ModelSource, artifacts: Artifacts) -> Model:
    """See :func:`bitsweep.models.skeleton`."""
    dtype, device = _dtype(source), _device(source)
    found: Files | Shape
    if source.random_weights:
        found = shapes.find(source.path)
        checkpoint, tokenizer_sha256 = found.checkpoint, ""
    else:
        found = files.locate(source, weights=False, artifacts=artifacts)
        checkpoint = found.checkpoint(files.digests(found, source, artifacts))
        tokenizer_sha256 = found.tokenizer_sha256()
    key = {"source": plain(source), "checkpoint": checkpoint, "tokenizer": tokenizer_sha256}

    def make() -> Model:
        with _quiet(), torch.random.fork_rng(devices=[]):
            config = _config(source, found)
            module = _bare(source, config, dtype)
            tokenizer = None if isinstance(found, Shape) else _tokenizer(source, found)
            anatomy = dissect(module, source.path)
        plan: Plan | None = None
        transforms: tuple[str, ...] = ()
        if isinstance(found, Files):
            plan = quantized.plan_of(found, source.path, anatomy.layers)
            transforms = quantized.transforms_of(found)
        if source.untie:
            untie(module)
        return Model(
            module=module,
            tokenizer=tokenizer,
            source=source,
            checkpoint=checkpoint,
            tokenizer_sha256=tokenizer_sha256,
            anatomy=anatomy,
            tied=is_tied(module),
            device=device,
            plan=plan,
            transformed=transforms,
        )

    return artifacts.remember("skeleton", key, make)


def _draw(bare: Model, artifacts: Artifacts) -> Model:
    """``bare``, the skeleton of a shape, with random weights."""
    source = bare.source

    def make() -> Model:
        with _quiet():
            module = draw(_config(source, shapes.find(source.path)), _dtype(source))
        if source.untie:
            untie(module)
        _place(module, bare.anatomy, bare.device)
        return replace(bare, module=module)

    return artifacts.remember("model", {"source": plain(source)}, make)


def _config(source: ModelSource, found: Files | Shape) -> Any:
    brings_code = "auto_map" in found.config
    place = found.file if isinstance(found, Shape) else found.folder
    try:
        config = AutoConfig.from_pretrained(
            place, trust_remote_code=source.trust_remote_code, local_files_only=True
        )
    except Exception as error:
        if brings_code and not source.trust_remote_code:
            raise UserError(
                f"model.trust_remote_code=false: {source.path} needs its own Python code to run; "
                "set it to true if you trust that code"
            ) from error
        raise UserError(
            f"model.path={source.path}: this transformers ({transformers.__version__}) cannot read "
            f"its config.json, model_type {found.config.get('model_type')!r} ({_line(error)})"
        ) from error
    if hasattr(config, quantized.KEY):
        delattr(config, quantized.KEY)  # its layers are ours to fill, not transformers'
    return config


def _bare(source: ModelSource, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the meta device, its attention written out so that it can be traced."""
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"model.path={source.path}: {config.model_type} is an encoder-decoder; bitsweep takes "
            "decoder-only language models"
        )
    try:
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(
                config,
                dtype=dtype,
                attn_implementation="eager",
                trust_remote_code=source.trust_remote_code,
            )
    except Exception as error:
        raise UserError(
            f"model.path={source.path}: {config.model_type} is no causal language model that this "
            f"transformers ({transformers.__version__}) can build ({_line(error)})"
        ) from error
    return module.eval()


def _read(source: ModelSource, found: Files, plan: Plan | None) -> PreTrainedModel:
    try:
        with _quiet():
            module, report = AutoModelForCausalLM.from_pretrained(
                found.folder,
                **({} if plan is None else {"config": _config(source, found)}),
                dtype=_dtype(source),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=source.trust_remote_code,
                output_loading_info=True,
            )
    except Exception as error:
        raise UserError(
            f"model.path={source.path}: its weights do not load ({_line(error)})"
        ) from error
    if missing := quantized.unfilled(report["missing_keys"], plan):
        raise UserError(
            f"model.path={source.path}: {len(missing)} tensors of the model are not in its "
            f"safetensors files, first {missing[0]}"
        )
    return module.eval().requires_grad_(False)


def _tokenizer(source: ModelSource, found: Files) -> Any:
    try:
        return AutoTokenizer.from_pretrained(
            found.folder, trust_remote_code=source.trust_remote_code, local_files_only=True
        )
    except Exception as error:
        raise UserError(
            f"model.path={source.path}: no tokenizer that loads lies in it ({_line(error)}); copy "
            "tokenizer.json and tokenizer_config.json beside the weights"
        ) from error


def _place(module: PreTrainedModel, anatomy: Anatomy, device: torch.device) -> None:
    if device.type == "cpu":
        return
    wanted = sum(tensor.nbytes for tensor in module.parameters())
    free, _ = torch.cuda.mem_get_info(device)
    if wanted <= SHARE_OF_GPU * free:
        module.to(device)
    else:
        live_on_cpu(module, anatomy.blocks, device)


@torch.inference_mode()
def _check_causal(module: PreTrainedModel, device: torch.device, path: str) -> None:
    """Refuse a model that looks ahead (BERT): its perplexity would mean nothing.

    Two texts that differ in their second token only must agree on what follows the first.
    """
    ids = torch.tensor([[1, 2], [1, 3]], device=device)
    with _quiet():
        first, second = module(input_ids=ids, use_cache=False).logits[:, 0].float()
    if not torch.allclose(first, second, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise UserError(
            f"model.path={path}: {type(module).__name__} looks at later tokens, so it is no causal "
            "language model; bitsweep takes decoder-only language models"
        )


def _dtype(source: ModelSource) -> torch.dtype:
    if source.dtype not in DTYPES:
        raise UserError(f"model.dtype={source.dtype}: no such dtype; {', '.join(DTYPES)}")
    return DTYPES[source.dtype]


def _device(source: ModelSource) -> torch.device:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", source.device):
        raise UserError(f"model.device={source.device}: no such device; cpu or cuda")
    device = torch.device(source.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"model.device={source.device}: torch sees no CUDA device here; model.device=cpu"
            )
        if device.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"model.device={source.device}: this machine has {torch.cuda.device_count()} CUDA "
                "devices, numbered from 0"
            )
    return device


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without warnings and progress bars; its settings come back afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _line(error: Exception) -> str:
    """The first line of an error, kept short."""
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    return f"{type(error).__name__}: {first[:160]}".rstrip(": ")
