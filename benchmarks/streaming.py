"""Peak memory of exporting checkpoints far larger than what is held: 1, 2, 4 and 8 GB.

    python benchmarks/streaming.py [--sizes 1 2 4 8] [--whole 1] [--scratch FOLDER]

Makes each checkpoint on the spot (a Llama of random bf16 weights, tensors of one size, more layers;
several shards), exports it in a process of its own, and writes results/streaming. ``--whole N``
also exports those of up to N GB from the loaded model, for comparison. Needs about 1.5 times the
largest size on disk, below ``--scratch``, and leaves nothing there.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "streaming"
MIB, GB = 2**20, 10**9
HIDDEN, MIDDLE, VOCABULARY, KEYS = 2048, 5632, 32000, 512
HEAD_TOO = "policy.rules=[{role:linear},{role:head}]"
POINT = ("method=rtn", "bits=4", "group_size=128", "symmetric=true", HEAD_TOO)
TO = "compressed-tensors"
SHARD = 10**9
COLUMNS = (
    "mode", "model_gb", "layers", "largest_tensor_mib", "peak_anonymous_mib", "peak_resident_mib",
    "idle_anonymous_mib", "wall_s", "cpu_s", "read_gb", "written_gb", "exported_gb", "commit",
)  # fmt: skip


# ------------------------------------------------------------------------------ checkpoints


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of the Llama, by name."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for i in range(layers):
        own = {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (KEYS, HIDDEN),
            "self_attn.v_proj": (KEYS, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (MIDDLE, HIDDEN),
            "mlp.up_proj": (MIDDLE, HIDDEN),
            "mlp.down_proj": (HIDDEN, MIDDLE),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }
        yield from ((f"model.layers.{i}.{name}.weight", shape) for name, shape in own.items())
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def nbytes(layers: int) -> int:
    total = 0
    for _, shape in shapes(layers):
        count = 1
        for size in shape:
            count *= size
        total += 2 * count
    return total


def layers_for(gigabytes: float) -> int:
    """How many layers come nearest to that size."""
    one = nbytes(1) - nbytes(0)
    return max(1, round((gigabytes * GB - nbytes(0)) / one))


def make_checkpoint(folder: Path, layers: int) -> None:
    """Write it tensor by tensor; numbers come from one block of them, each from another place."""
    import torch

    from bitsweep import __file__ as package
    from bitsweep.export.checkpoint import Shards, write_json

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(2**22, generator=generator).mul_(HIDDEN**-0.5).bfloat16()
    shards = Shards(folder, SHARD)
    for name, shape in shapes(layers):

        def parts(left: int) -> Iterator[torch.Tensor]:
            while left:
                begin = int(torch.randint(len(block) // 2, (1,), generator=generator))
                part = block[begin : begin + min(left, len(block) // 2)]
                left -= len(part)
                yield part

        shards.add_parts(name, torch.bfloat16, shape, parts(torch.Size(shape).numel()))
    shards.close()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "num_hidden_layers": layers,
        "num_attention_heads": HIDDEN // 64,
        "num_key_value_heads": KEYS // 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    write_json(folder / "config.json", config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(package).parent / "reference" / "model" / name, folder)


# ------------------------------------------------------------------------------ one process


def status() -> dict[str, float]:
    """MiB of this process: all of it, its anonymous part, and its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {key: int(found[key].split()[0]) / 1024 for key in ("VmRSS", "RssAnon", "VmHWM")}


class Sampler:
    """The largest RssAnon inside the ``with``, looked at every five milliseconds."""

    def __enter__(self) -> Sampler:
        self.peak = status()["RssAnon"]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, status()["RssAnon"])

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def child(mode: str, source: str, out: str) -> None:
    """Export ``source`` to ``out``; prints what it took, above this process with all imported."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401 - part of the idle process

    from bitsweep import cli
    from bitsweep.commands import export  # noqa: F401
    from bitsweep.export import folder, streaming  # noqa: F401

    arguments = ["export", f"model.path={source}", *POINT, "--to", TO, "--out", out]
    if mode == "whole":
        streaming.refuses = lambda *_: "asked for"  # type: ignore[assignment]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    idle, began = status(), time.perf_counter()
    before, cpu = io(), time.process_time()
    with Sampler() as sampler:
        code = cli.dispatch(arguments)
    if code:
        raise SystemExit(code)
    after = io()
    found = {
        "peak_anonymous_mib": sampler.peak - idle["RssAnon"],
        "peak_resident_mib": status()["VmHWM"] - idle["VmRSS"],
        "idle_anonymous_mib": idle["RssAnon"],
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "read_gb": (after["rchar"] - before["rchar"]) / GB,
        "written_gb": (after["wchar"] - before["wchar"]) / GB,
    }
    print(json.dumps(found))


def io() -> dict[str, int]:
    """Bytes that this process asked to read and to write, wherever they came from."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {key: int(value) for key, value in (line.split(":") for line in lines)}


# ------------------------------------------------------------------------------ all of them


def measure(mode: str, gigabytes: float, scratch: Path) -> dict[str, Any]:
    from bitsweep import provenance

    layers = layers_for(gigabytes)
    source, out = scratch / "source", scratch / "out"
    if not source.exists():
        make_checkpoint(source, layers)
    words = [sys.executable, __file__, "--child", mode, str(source), str(out)]
    environment = {**os.environ, "BITSWEEP_CACHE": str(scratch / "cache"), "HF_HUB_OFFLINE": "1"}
    output = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    exported = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    shutil.rmtree(out)
    return {
        "mode": mode,
        "model_gb": nbytes(layers) / GB,
        "layers": layers,
        "largest_tensor_mib": 2 * VOCABULARY * HIDDEN / MIB,
        **json.loads(output.stdout.splitlines()[-1]),
        "exported_gb": exported / GB,
        "commit": provenance.code().get("commit") or "unknown",
    }


def write(rows: list[dict[str, Any]]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "streaming.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(shown)


def read() -> list[dict[str, Any]]:
    with (RESULTS / "streaming.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v if k in ("mode", "commit") else float(v) for k, v in row.items()} for row in rows]


def draw(rows: list[dict[str, Any]]) -> None:
    """Peak against size, with the bound of twice the largest tensor."""
    import matplotlib
    from matplotlib.figure import Figure

    from bitsweep.report.style import COLUMN_IN, FAINT, MARKERS, PALETTE, STYLE, UNDATED

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        figure = Figure(figsize=(COLUMN_IN, 2.3))
        axes = figure.add_axes((0.235, 0.17, 0.735, 0.78))
        names = {"stream": "tensor by tensor", "whole": "from the loaded model"}
        for (mode, name), color, marker in zip(names.items(), PALETTE, MARKERS, strict=False):
            own = [row for row in rows if row["mode"] == mode]
            x, y = ([row[key] for row in own] for key in ("model_gb", "peak_anonymous_mib"))
            if own:
                axes.plot(x, y, color=color, marker=marker, markersize=4, linewidth=1, label=name)
        sizes = sorted({row["model_gb"] for row in rows})
        bound = 2 * rows[0]["largest_tensor_mib"]
        lines = {
            "twice the largest tensor": [bound] * len(sizes),
            "the checkpoint": [size * GB / MIB for size in sizes],
        }
        for name, y in lines.items():
            axes.plot(sizes, y, color=FAINT, linewidth=0.8, linestyle="--")
            axes.annotate(
                name,
                (sizes[-1], y[-1]),
                (0, 4),
                textcoords="offset points",
                color=FAINT,
                ha="right",
            )
        axes.set(xscale="log", yscale="log", xlabel="checkpoint, GB (bf16)")
        axes.set_ylabel("peak anonymous memory\nabove idle, MiB")
        axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axes.minorticks_off()
        axes.set_yticks([100, 1000, 10000], ["100", "1,000", "10,000"])
        axes.set_ylim(50, 15000)
        axes.spines["right"].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
        for suffix, options in UNDATED.items():
            figure.savefig(RESULTS / f"streaming.{suffix}", format=suffix, **options)


def page(rows: list[dict[str, Any]], command: str) -> str:
    """README.md: question, command, machine, answer, table."""
    import torch

    from bitsweep import provenance

    commit = rows[0]["commit"]
    own = [row for row in rows if row["mode"] == "stream"]
    peaks = [row["peak_anonymous_mib"] for row in own]
    largest = own[0]["largest_tensor_mib"]
    first, last = own[0], own[-1]
    growth = (peaks[-1] - peaks[0]) / max(1, last["layers"] - first["layers"])
    answer = (
        f"Answer: the peak is {min(peaks):.0f} to {max(peaks):.0f} MiB of anonymous memory above "
        f"the idle process, {max(peaks) / largest:.2f} times the largest tensor "
        f"({largest:.0f} MiB) at most, from {first['model_gb']:.1f} to {last['model_gb']:.1f} GB "
        f"({first['layers']:.0f} to {last['layers']:.0f} layers). It grows by {growth:.2f} MiB a "
        "layer."
    )
    lines = [
        "# Exporting a checkpoint larger than memory",
        "",
        "Question: how much memory does it take to quantize and export a checkpoint, as it grows?",
        f"Command: `{command}`, which writes this folder.",
        "",
        answer,
        "",
        "![peak memory against size](streaming.png)",
        "",
        f"Each row is a process of its own: `bitsweep export model.path=... {' '.join(POINT)} --to "
        f"{TO}` of a Llama of random bf16 weights (hidden {HIDDEN}, vocabulary {VOCABULARY}; "
        "the head, the largest of all tensors, is quantized too), in shards of 1 GB. "
        "Peak anonymous: the largest RssAnon, sampled every 5 ms, less that of the same process "
        "with everything imported. Peak resident: VmHWM, exact and with file pages, less the idle "
        "VmRSS. Read and written count every call, the checkpoint's SHA-256 before and the copy "
        "behind a shard's header included."
        + " `whole` is the ordinary export of the loaded model."
        * (len(own) < len(rows)),
        "",
        f"{provenance.device_name('cpu')}, {os.cpu_count()} cores, {torch.get_num_threads()} "
        f"thread(s), torch {torch.__version__}, commit `{commit[:12]}`. Times are of a machine "
        "with other load.",
        "",
        "| mode | GB | layers | peak anonymous MiB | / largest tensor | peak resident MiB | wall s "
        "| CPU s | read GB | written GB | exported GB |",
        f"|{'-|' * 11}",
    ]
    for row in rows:
        cells = (
            f"{row['mode']} | {row['model_gb']:.2f} | {row['layers']:.0f} "
            f"| {row['peak_anonymous_mib']:.0f} | {row['peak_anonymous_mib'] / largest:.2f} "
            f"| {row['peak_resident_mib']:.0f} | {row['wall_s']:.0f} | {row['cpu_s']:.0f} "
            f"| {row['read_gb']:.1f} | {row['written_gb']:.1f} | {row['exported_gb']:.2f}"
        )
        lines.append(f"| {cells} |")
    lines += ["", "What a checkpoint that is not trusted prints: [SAFETY.md](SAFETY.md)."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 2, 4, 8], help="GB")
    parser.add_argument("--whole", type=float, default=0, help="from the loaded model, up to N GB")
    parser.add_argument("--scratch", type=Path, help="a folder with room (default: the system's)")
    parser.add_argument("--draw", action="store_true", help="figure and page from streaming.csv")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    rows = read() if given.draw else []
    for gigabytes in () if given.draw else given.sizes:
        modes = ["stream"] + ["whole"] * (gigabytes <= given.whole)
        with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
            for mode in modes:
                rows.append(measure(mode, gigabytes, Path(scratch)))
                print(json.dumps(rows[-1]), flush=True)
    rows.sort(key=lambda row: (row["mode"], row["model_gb"]))
    if not given.draw:
        write(rows)
    draw(read())
    sizes = " ".join(f"{round(row['model_gb']):g}" for row in rows if row["mode"] == "stream")
    whole = max((round(row["model_gb"]) for row in rows if row["mode"] == "whole"), default=0)
    command = f"python benchmarks/streaming.py --sizes {sizes}" + f" --whole {whole}" * bool(whole)
    (RESULTS / "README.md").write_text(page(rows, command), encoding="utf-8")


if __name__ == "__main__":
    main()
