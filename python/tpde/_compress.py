"""Compressing a model: splitting it into a quantised base and a residual.

The format stands in core/checkpoint/FORMAT.md, the algorithms in the core.
"""

from __future__ import annotations

import json
import os
from typing import Any

from tpde import _compressed, _jobs, _options
from tpde._core import core
from tpde._reports import CompressedReport
from tpde._sources import Checkpoint, PathLike, open_source, refuse_inputs
from tpde._status import ArgumentError


def compress(
    model: Checkpoint,
    out: PathLike,
    *,
    base: PathLike = "int4",
    group_size: int = 64,
    embeddings: str = "auto",
    link_base: bool = False,
    codec: str = "auto",
    level: str = "default",
    workers: int = 0,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    progress: bool | None = None,
) -> CompressedReport:
    """Splits a model into a small quantised base and the residual that makes it whole again, bit for bit.

    model: what is compressed (see `pack`).
    out: a folder, which appears whole or not at all: base/, the quantised base; residual.safetensors, an ordinary delta
        against it; and copies of the model's small files (config.json, tokenizer) for tools that look for them.
    base: "int2", "int3", "int4" or "int8": every matrix of floats (float16, bfloat16 or float32, of two dimensions or
        more and 16384 elements or more) is quantised in groups; all else has no base and is in the residual. "none":
        nothing has a base; the model is compressed as it is. Else the path of a quantised safetensors checkpoint of
        the same model: one that bitsandbytes has quantised (NF4 or FP4, also double-quantised, or LLM.int8()), or the
        base of another compressed model. What it holds of other tensors serves as a base, too.
    group_size: consecutive elements that share a scale, 8 to 65536.
    embeddings: "base" treats them as other matrices, "none" leaves them without a base, "auto" gives them one where the
        model has no output matrix of its own.
    link_base: out gets a symbolic link to a base that is given by its path, instead of a copy.
    codec, level, workers, max_shard_size, overwrite, progress: as for `pack`. The result does not depend on workers.

    Returns what out holds, with the bits per weight of base and residual; `print` shows a table. `unpack(out,
    "restored")`, `verify(out)` and `inspect(out)` take the folder, and wherever a checkpoint is expected it stands for
    the full model.
    Raises as `pack`; BaseMismatchError if a base that is given by its path is not one of this model.
    """
    _options.choose("codec", codec, _options.CODECS)
    _options.choose("level", level, _options.LEVELS)
    if embeddings not in _compressed.EMBEDDINGS:
        raise ArgumentError(f"embeddings: expected one of {', '.join(_compressed.EMBEDDINGS)}; got {embeddings!r}")
    options: dict[str, Any] = {
        "group_size": _options.count("group_size", group_size),
        "embeddings": embeddings,
        "link_base": bool(link_base),
        "codec": codec,
        "level": level,
        "workers": _options.workers(workers),
        "max_shard_bytes": _options.size_in_bytes("max_shard_size", max_shard_size),
        "overwrite": bool(overwrite),
    }
    if isinstance(base, str) and base in _compressed.DERIVED:
        options["base"] = base
    elif isinstance(base, (str, os.PathLike)) and os.path.exists(base):
        options["base_path"] = os.fspath(base)
    else:
        names = ", ".join(_compressed.DERIVED)
        raise ArgumentError(f"base: expected {names} or the path of a quantised checkpoint; got {base!r}")
    if model is None:
        raise ArgumentError("model: expected a path or a dict of names and tensors, got None")
    destination = os.fspath(out)
    with open_source(model, "model") as source:
        refuse_inputs(destination, source)
        arguments = (source.handle, destination, json.dumps(options))
        return CompressedReport.of(_jobs.run(core().compress_start, arguments, "compress", progress))
