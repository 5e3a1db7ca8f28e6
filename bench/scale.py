"""What `make scale` shows: large models on one machine, and what a comparison costs by layers and by tokens.

Each case runs in a process of its own, whose peak of memory the system tells. `--large GB` is the size of the
checkpoint that must not fit into memory, `--limit GB` what its process is given.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from transformers.utils import logging

import twinlens
from bench.pages import conditions, page
from twinlens.first_case.checkpoints import FULL, LLAMA, Size, gemma2, llama32, written
from twinlens.report.table import Table
from twinlens.report.terminal import rendered
from twinlens.report.words import change, depth, layers
from twinlens.sources import hf
from twinlens.tensors import read_json

GB = 1e9
WIDE = Size(46, 5120, 13824, 40, 40, 128, 32000, positions=512)
"""Llama-2-13B's shape, as many layers as make 30 GB in bfloat16."""
GROUPS = Path("/sys/fs/cgroup/memory")
"""Where a limit of memory can be set on Linux, by who may."""


def _scale(model: Any) -> None:
    model.model.layers[len(model.model.layers) // 2].self_attn.scaling *= 1.01


def _eps(model: Any) -> None:
    for layer in model.model.layers:
        layer.input_layernorm.eps = 1e-5


def _cap(model: Any) -> None:
    model.config.final_logit_softcapping = 25.0


def _base(model: Any) -> None:
    model.model.rotary_emb.inv_freq **= math.log(20_000) / math.log(10_000)


def _nothing(model: Any) -> None:
    pass


FAULTS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "none": ("none", _nothing),
    "scale": ("a layer's scale of scores off by 1 %", _scale),
    "eps": ("eps 1e-5 for 1e-6 in the first norm of every layer", _eps),
    "cap": ("cap of the logits 25 for 30", _cap),
    "base": ("rotary base 20,000 for 10,000", _base),
}
SHARED, LIMITED = ("scale", "eps", "cap", "base"), ("scale",)


# ------------------------------------------------------------------------------------- one case, in its own process


def case(fault: str, folder: Path, tokens: int, *, on_disk: bool) -> dict[str, Any]:
    """A checkpoint against a faulty copy of itself that shares its weights."""
    stored = read_json(folder / "config.json", "make the checkpoint")["torch_dtype"]
    reference = hf.build(str(folder), dtype=stored).module
    candidate: nn.Module = copy.deepcopy(reference, {id(p): p for p in reference.parameters()})
    FAULTS[fault][1](candidate)
    ids = torch.randint(reference.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr, arg-type]
    start = time.perf_counter()
    report = twinlens.compare(reference, candidate, tokens=ids, layers_at_a_time=on_disk)
    deep = depth(report)
    told = [(c, f"`{c.parameter}` {change(c)}, layers: {layers(c.layers, deep)}") for c in report.causes]
    causes = "; ".join(f"{words}, {cause.status}" for cause, words in told)
    return {
        "seconds": time.perf_counter() - start,
        "peak": _peak(),
        "verdict": report.verdict,
        "causes": causes or "none",
    }


def _peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))


def in_its_own_process(fault: str, folder: Path, tokens: int, *, limit: float | None = None) -> dict[str, Any]:
    """As `case`; with a limit, its weights stay on disk, and where the system lets us it cannot have more memory."""
    command = [sys.executable, "-m", "bench.scale", "--case", fault, "--folder", str(folder), "--tokens", str(tokens)]
    group = None if limit is None else _group(limit)
    if limit is not None:
        command.append("--on-disk")

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=enter)
    found = json.loads(done.stdout.splitlines()[-1])
    if group is not None:
        found["limited"] = True
        group.rmdir()
    return found


def _group(limit: float) -> Path | None:
    """A group of processes that has so many bytes of memory; None where we may not make one."""
    group = GROUPS / f"twinlens-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(int(limit)), encoding="ascii")
    except OSError:
        return None
    return group


# ---------------------------------------------------------------------------------------------- random checkpoints


def random_bfloat16(folder: Path, size: Size) -> Path:
    """A Llama of random bfloat16 weights, made layer by layer; one that is there already is kept."""
    small = llama32(folder.with_name("small"))
    config = read_json(small / "config.json", "make it") | {
        "hidden_size": size.width, "intermediate_size": size.mlp, "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads, "num_key_value_heads": size.kv_heads, "head_dim": size.head_width,
        "vocab_size": size.vocabulary, "max_position_embeddings": size.positions, "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }  # fmt: skip
    return written(folder, config, _layers(size))


def _layers(size: Size) -> Iterator[dict[str, Tensor]]:
    d, q, kv = size.width, size.heads * size.head_width, size.kv_heads * size.head_width
    yield {"model.embed_tokens.weight": _random(size.vocabulary, d, std=1.0)}
    for i in range(size.layers):
        shapes = {
            "self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, q), "mlp.gate_proj": (size.mlp, d), "mlp.up_proj": (size.mlp, d),
            "mlp.down_proj": (d, size.mlp),
        }  # fmt: skip
        tensors = {name: _random(*shape, std=shape[1] ** -0.5) for name, shape in shapes.items()}
        tensors |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"))  # type: ignore[arg-type]
        yield {
            f"model.layers.{i}.{name}.weight": torch.ones(d, dtype=torch.bfloat16) if tensor is None else tensor
            for name, tensor in tensors.items()
        }
    yield {"model.norm.weight": torch.ones(d, dtype=torch.bfloat16)}
    yield {"lm_head.weight": _random(size.vocabulary, d, std=d**-0.5)}


def _random(*shape: int, std: float) -> Tensor:
    """Random signs and mantissas of one power of two: as many bits as can be random, ten times as fast as a normal."""
    bits = torch.empty(shape, dtype=torch.int16).random_(-(1 << 15), 1 << 15)
    power = torch.tensor(std / 1.5, dtype=torch.bfloat16).view(torch.int16) & 0x7F80
    return (bits & (0x807F - (1 << 16)) | power).view(torch.bfloat16)


# ------------------------------------------------------------------------------------------------ cost and its plot


KINDS = {"equal": ("eager", "none"), "rounding": ("sdpa", "none"), "a fault": ("eager", "scale")}


def costs(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """CPU seconds of a comparison, by layers and by tokens, for each kind of verdict."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {"layers": {}, "tokens": {}}
    for axis, points in (("layers", (2, 4, 8, 16, 32)), ("tokens", (32, 64, 128, 256, 512))):
        for at in points:
            layers, tokens = (at, 64) if axis == "layers" else (4, at)
            size = dataclasses.replace(LLAMA, layers=layers)
            checkpoint = llama32(folder / f"llama-{layers}", size)
            for kind, (attn, fault) in KINDS.items():
                reference, candidate = (hf.build(str(checkpoint), attn=how).module for how in ("eager", attn))
                FAULTS[fault][1](candidate)
                ids = torch.randint(512, (1, tokens), generator=torch.Generator().manual_seed(1))
                times = list[float]()
                for _ in range(3):
                    start = time.process_time()
                    twinlens.compare(reference, candidate, tokens=ids)
                    times.append(time.process_time() - start)
                found[axis].setdefault(kind, []).append((at, min(times)))
    return found


def plot(found: dict[str, dict[str, list[tuple[int, float]]]], to: Path) -> None:
    """Both as a picture."""
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for ax, (axis, kinds) in zip(axes, found.items(), strict=True):
        for kind, points in kinds.items():
            ax.plot(*zip(*points, strict=True), marker="o", label=kind)
        ax.set(xlabel=axis, ylabel="CPU seconds", ylim=(0, None), xlim=(0, None))
        ax.grid(alpha=0.3)
    axes[0].set_title("64 tokens")
    axes[1].set_title("4 layers")
    axes[0].legend()
    figure.savefig(to, metadata={"Date": None})


# --------------------------------------------------------------------------------------------------------- the page


def row(what: str, fault: str, found: dict[str, Any]) -> tuple[str, ...]:
    memory = f"{found['peak'] / GB:.1f} GB{' (limited)' if found.get('limited') else ''}"
    return what, FAULTS[fault][0], f"{found['seconds']:.0f} s", memory, found["verdict"], found["causes"]


def tables(folder: Path, large: float, limit: float) -> Iterator[Table]:
    columns = ("model", "fault", "time", "peak of memory", "verdict", "causes")
    where = gemma2(folder / "gemma2", dataclasses.replace(FULL, window=32))
    what = f"{FULL.layers} layers, width {FULL.width}, vocabulary {FULL.vocabulary:,}, float32, 64 tokens"
    rows = tuple(row(what, fault, in_its_own_process(fault, where, 64)) for fault in SHARED)
    yield Table("Gemma-2 with random weights against a faulty version of itself, weights shared", columns, rows)
    if large:
        size = dataclasses.replace(WIDE, layers=max(round((large * GB - 0.66 * GB) / 0.634 / GB), 1))
        where = random_bfloat16(folder / "wide", size)
        there = sum(f.stat().st_size for f in where.iterdir()) / GB
        what = f"{size.layers} layers, width {size.width}, {there:.1f} GB in bfloat16, 64 tokens"
        within = (in_its_own_process(fault, where, 64, limit=limit * GB) for fault in LIMITED)
        rows = tuple(row(what, fault, found) for fault, found in zip(LIMITED, within, strict=True))
        yield Table(f"A checkpoint larger than memory, layers at a time, within {limit:g} GB", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make scale", description=__doc__)
    parser.add_argument("--write", type=Path, help="the page to write; its picture stands beside it")
    parser.add_argument("--large", type=float, default=30.0, help="GB of the large checkpoint; 0 leaves it out")
    parser.add_argument("--limit", type=float, default=8.0, help="GB of memory for it")
    parser.add_argument("--folder", type=Path, help="where checkpoints are made, and kept; by default a temporary one")
    parser.add_argument("--case", choices=FAULTS, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=64, help=argparse.SUPPRESS)
    parser.add_argument("--on-disk", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(case(given.case, given.folder, given.tokens, on_disk=given.on_disk)))
        return
    with tempfile.TemporaryDirectory(prefix="twinlens-scale-") as temporary:
        folder = given.folder or Path(temporary)
        logging.set_verbosity_error()  # positions fewer than those that its rotation begins to scale at
        found = costs(folder)
        made = list(tables(folder, given.large, given.limit))
    growth = Table(
        "CPU seconds of a comparison",
        ("by", "verdict", *("",) * 5),
        tuple(
            (axis, kind, *(f"{at}: {seconds:.2f}" for at, seconds in points))
            for axis, kinds in found.items()
            for kind, points in kinds.items()
        ),
    )
    for table in (*made, growth):
        Console(width=120).print(rendered(table))
    if given.write:
        picture = given.write.with_suffix(".svg")
        plot(found, picture)
        said = f"{conditions()}. A peak of memory counts pages of mapped files, the libraries' among them."
        after = ["", f"![CPU seconds by layers and by tokens]({picture.name})"]
        given.write.write_text(page("Large models", "make scale", said, (*made, growth), after), encoding="utf-8")


if __name__ == "__main__":
    main()
