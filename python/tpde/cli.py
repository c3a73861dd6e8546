"""The command `tpde`. Exit codes: 0 success, 1 failure (one line on stderr), 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from tpde import _compressed, _options
from tpde._status import ArgumentError, TpdeError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and tensors may have what it cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    run: Callable[[argparse.Namespace], None] = arguments.run
    try:
        run(arguments)
        sys.stdout.flush()
    except _UsageError as error:
        arguments.parser.error(str(error))
    except KeyboardInterrupt:
        print("tpde: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `tpde inspect ... | head`
        sys.stderr.close()
        return 1
    except (TpdeError, OSError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"tpde: error: {text}", file=sys.stderr)
        return 1
    return 0


class _UsageError(Exception):
    """The command line makes no sense; argparse prints it with the usage."""


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, (DeprecationWarning, FutureWarning)):
        return  # addressed to the authors of a dependency
    print(f"tpde: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tpde",
        description="Lossless, compressed deltas of model weights. A checkpoint is a safetensors file, a folder of "
        "them, or a PyTorch state dict (.pt, .pth, .bin).",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str, usage: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, usage=f"tpde {name} {usage}")
        sub.set_defaults(run=run, parser=sub)
        return sub

    pack = command(
        "pack",
        _pack,
        "Pack TARGET against BASE ('-': against nothing), or each checkpoint of FOLDER against the one before it.",
        "[options] BASE TARGET OUT | FOLDER OUT_DIR",
    )
    pack.add_argument("paths", nargs="+", metavar="PATH", help="BASE TARGET OUT, or FOLDER OUT_DIR")
    pack.add_argument("--codec", choices=_options.CODECS, default="auto", help="default: auto, by trial per tensor")
    pack.add_argument("--residual", choices=_options.RESIDUALS, default="bit", help="default: bit")
    pack.add_argument("--level", choices=_options.LEVELS, default="default")
    chunks = pack.add_mutually_exclusive_group()
    chunks.add_argument("--num-chunks", type=_natural, default=0, metavar="N", help="chunks per tensor")
    chunks.add_argument("--chunk-bytes", type=_natural, default=0, metavar="N", help="bytes of target per chunk")
    pack.add_argument(
        "--max-shard-size", type=_size, default="5GB", metavar="SIZE", help="split a larger delta; default: 5GB"
    )
    _common(pack, writes=True)

    compress = command(
        "compress",
        _compress,
        "Split MODEL into a small quantised base and the residual that restores every bit; OUT is a folder.",
        "[options] MODEL OUT",
    )
    compress.add_argument("model", metavar="MODEL")
    compress.add_argument("out", metavar="OUT")
    compress.add_argument(
        "--base", default="int4", metavar="BASE",
        help="int2, int3, int4, int8 (derived from MODEL), none, or the path of a quantised checkpoint of the same "
        "model (bitsandbytes NF4, FP4 or int8); default: int4",
    )  # fmt: skip
    compress.add_argument(
        "--group-size", type=_positive, default=64, metavar="N", help="weights per scale; default: 64"
    )
    compress.add_argument(
        "--embeddings", choices=_compressed.EMBEDDINGS, default="auto",
        help="whether embeddings get a base; default: auto, where they serve as output matrix, too",
    )  # fmt: skip
    compress.add_argument(
        "--link-base", action="store_true", help="link to the checkpoint given with --base, do not copy it"
    )
    compress.add_argument("--codec", choices=_options.CODECS, default="auto", help="default: auto, by trial per tensor")
    compress.add_argument("--level", choices=_options.LEVELS, default="default")
    compress.add_argument(
        "--max-shard-size", type=_size, default="5GB", metavar="SIZE", help="split larger files; default: 5GB"
    )
    _common(compress, writes=True)

    unpack = command(
        "unpack",
        _unpack,
        "Rebuild the target of the last DELTA from BASE, or a compressed MODEL, byte for byte, proven with sha256.",
        "[options] BASE DELTA [DELTA ...] OUT | MODEL OUT",
    )
    unpack.add_argument("base", metavar="BASE")
    unpack.add_argument("paths", nargs="+", metavar="DELTA ... OUT")
    unpack.add_argument("--device", metavar="DEVICE", help="rebuild there: cpu (default), cuda, cuda:1, ...")
    _common(unpack, writes=True)

    verify = command(
        "verify",
        _verify,
        "Prove, without writing anything, that the deltas rebuild their target (and TARGET, if given) from BASE, or "
        "that a compressed MODEL can be restored.",
        "[options] BASE DELTA [DELTA ...] [TARGET] | MODEL [TARGET]",
    )
    verify.add_argument("base", metavar="BASE")
    verify.add_argument("paths", nargs="*", metavar="DELTA ... [TARGET]")
    verify.add_argument("--target", metavar="TARGET", help="compare the rebuilt tensors with these")
    _common(verify, writes=False)

    inspect = command("inspect", _inspect, "Show what a delta or a compressed model holds.", "[--json] DELTA | MODEL")
    inspect.add_argument("delta", metavar="DELTA")
    inspect.add_argument("--json", action="store_true", help="print JSON")

    bench = command(
        "bench", _bench, "Measure our codecs beside XOR + zstd on the tensors that changed.", "[options] BASE TARGET"
    )
    bench.add_argument("base", metavar="BASE")
    bench.add_argument("target", metavar="TARGET")
    bench.add_argument("--workers", type=_workers, default=1, metavar="N", help="cores for our codecs; default: 1")
    bench.add_argument(
        "--limit", type=_size, default="1GB", metavar="SIZE", help="take tensors up to this size; default: 1GB"
    )
    bench.add_argument("--repeats", type=_positive, default=5, metavar="N", help="default: 5")
    bench.add_argument("--json", action="store_true", help="print JSON")

    plan = command(
        "plan",
        _plan,
        "Say what of a compressed MODEL stays in VRAM within a budget and what is streamed, layer by layer, and how "
        "long a pass takes.",
        "[options] MODEL",
    )
    plan.add_argument("model", metavar="MODEL")
    plan.add_argument("--vram", type=_size, metavar="SIZE", help="the budget; default: what is free on the GPU")
    plan.add_argument(
        "--reserve", type=_size_or_none, metavar="SIZE",
        help="of it, for activations and caches; default: an eighth, 512MiB at most",
    )  # fmt: skip
    plan.add_argument("--copy", type=_rate, metavar="GB/S", help="from host memory to the GPU; default: measured")
    plan.add_argument("--decode", type=_rate, metavar="GB/S", help="of rebuilt weights; default: measured")
    plan.add_argument("--device", metavar="DEVICE", help="the GPU to measure on: cuda, cuda:1, ..., or cpu: none")
    plan.add_argument("--no-embeddings", action="store_true", help="keep embeddings in VRAM, not in host memory")
    plan.add_argument("--json", action="store_true", help="print JSON")

    info = command("info", _info, "Show the GPUs, and which of the libraries that they need were found.", "[--json]")
    info.add_argument("--json", action="store_true", help="print JSON")

    command("version", _version, "Show the versions of the package and of its core.", "")
    return parser


def _common(parser: argparse.ArgumentParser, writes: bool) -> None:
    parser.add_argument("--workers", type=_workers, default=0, metavar="N", help="cores to use; default: all")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    if writes:
        parser.add_argument("-f", "--force", action="store_true", help="replace the output if it exists")


def _natural(text: str) -> int:
    return _number(text, 0)


def _positive(text: str) -> int:
    return _number(text, 1)


def _number(text: str, least: int) -> int:
    value = int(text) if text.isdecimal() else -1
    if not least <= value <= _options.MAX_COUNT:
        raise argparse.ArgumentTypeError(f"expected a number from {least} up, got {text!r}")
    return value


def _workers(text: str) -> int:
    value = _natural(text)
    if value > _options.MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to {_options.MAX_WORKERS}, got {text!r}")
    return value


def _size(text: str, least: int = 1) -> int:
    try:
        return _options.size_in_bytes("size", text, least=least)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("size: ")) from None


def _size_or_none(text: str) -> int:
    return _size(text, least=0)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of GB/s above 0, got {text!r}")
    return rate


def _progress(arguments: argparse.Namespace) -> bool | None:
    return False if arguments.quiet or arguments.json else None


def _say(arguments: argparse.Namespace, text: str, report: Any) -> None:
    if arguments.json:
        print(json.dumps(report, indent=2))
    elif not arguments.quiet:
        print(text)


def _checkpoint(path: str) -> str | None:
    """'-' stands for no checkpoint at all."""
    return None if path == "-" else path


def _pack(arguments: argparse.Namespace) -> None:
    from tpde import _api

    options: Any = {
        "codec": arguments.codec,
        "residual": arguments.residual,
        "level": arguments.level,
        "workers": arguments.workers,
        "num_chunks": arguments.num_chunks,
        "chunk_bytes": arguments.chunk_bytes,
        "max_shard_size": arguments.max_shard_size,
        "overwrite": arguments.force,
        "progress": _progress(arguments),
    }
    if len(arguments.paths) == 3:
        base, target, out = arguments.paths
        report = _api.pack(_checkpoint(base), target, out, **options)
        _say(arguments, f"{', '.join(report.out)}: {report.summary()}", report.to_dict())
    elif len(arguments.paths) == 2:
        reports = _api.pack_chain(*arguments.paths, **options)
        text = "\n".join(f"{', '.join(report.out)}: {report.summary()}" for report in reports)
        _say(arguments, text, [report.to_dict() for report in reports])
    else:
        raise _UsageError(f"expected BASE TARGET OUT or FOLDER OUT_DIR, got {len(arguments.paths)} paths")


def _compress(arguments: argparse.Namespace) -> None:
    from tpde._compress import compress

    report = compress(
        arguments.model,
        arguments.out,
        base=arguments.base,
        group_size=arguments.group_size,
        embeddings=arguments.embeddings,
        link_base=arguments.link_base,
        codec=arguments.codec,
        level=arguments.level,
        workers=arguments.workers,
        max_shard_size=arguments.max_shard_size,
        overwrite=arguments.force,
        progress=_progress(arguments),
    )
    _say(arguments, f"{arguments.out}: {report.summary()}", report.to_dict())


def _unpack(arguments: argparse.Namespace) -> None:
    from tpde import _api, _deltas

    *deltas, out = arguments.paths
    if not deltas and not _compressed.is_compressed(arguments.base):
        raise _UsageError("expected BASE DELTA [DELTA ...] OUT, got 2 paths")
    if _deltas.is_delta(out):  # with --force it would be lost
        raise _UsageError(f"expected BASE DELTA [DELTA ...] OUT, but the last path, {out}, is a delta")
    report = _api.unpack(
        _checkpoint(arguments.base),
        *deltas,
        out=out,
        device=arguments.device,
        workers=arguments.workers,
        overwrite=arguments.force,
        progress=_progress(arguments),
    )
    _say(arguments, str(report), report.to_dict())


def _verify(arguments: argparse.Namespace) -> None:
    from tpde import _api, _deltas

    deltas, target = list(arguments.paths), arguments.target
    compressed = _compressed.is_compressed(arguments.base)
    if not deltas and not compressed:
        raise _UsageError("expected BASE DELTA [DELTA ...] [TARGET], got 1 path")
    if target is None and len(deltas) > (0 if compressed else 1) and not _deltas.is_delta(deltas[-1]):
        target = deltas.pop()
    report = _api.verify(
        _checkpoint(arguments.base), *deltas, target=target, workers=arguments.workers, progress=_progress(arguments)
    )
    _say(arguments, str(report), report.to_dict())


def _inspect(arguments: argparse.Namespace) -> None:
    from tpde import _api

    report = _api.inspect(arguments.delta)
    print(report.to_json() if arguments.json else report)


def _bench(arguments: argparse.Namespace) -> None:
    from tpde import _bench, _reports

    pairs, skipped = _bench.read_pairs(arguments.base, arguments.target, arguments.limit)
    if not pairs:
        limit = _reports.size(arguments.limit)
        raise ArgumentError(f"{arguments.target}: no tensor of up to {limit} differs from {arguments.base}")
    lines, notes = _bench.measure(pairs, workers=(arguments.workers,), repeats=arguments.repeats)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(line) for line in lines], indent=2))
        return
    print(f"{len(pairs)} changed tensors; every line was verified bit for bit first")
    print(_bench.as_table(lines))
    if skipped:
        notes.append(f"{skipped} tensors were left out; --limit takes in more")
    for note in notes:
        print(f"note: {note}")


def _plan(arguments: argparse.Namespace) -> None:
    from tpde._forecast import forecast

    made = forecast(
        arguments.model,
        arguments.vram,
        reserve=arguments.reserve,
        embeddings=not arguments.no_embeddings,
        copy=arguments.copy,
        decode=arguments.decode,
        device=arguments.device,
    )
    print(json.dumps(made.to_dict(), indent=2) if arguments.json else made)


def _info(arguments: argparse.Namespace) -> None:
    from tpde._core import gpu_core

    found = json.loads(gpu_core().device_info())
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, title in (("driver", "driver"), ("nvrtc", "NVRTC"), ("nvcomp", "nvCOMP"), ("nvml", "NVML")):
        library = found[name]
        version = f"CUDA {library.get('version')}" if name == "driver" else library.get("version", "")
        text = f"{version}  {library.get('path', '')}".strip() if library["found"] else "not found"
        print(f"{title:<8}{text}")
        if library.get("error"):
            print(f"{'':<8}{library['error']}")
    for number, gpu in enumerate(found["gpus"]):
        print(f"GPU {number:<4}{_gpu_line(gpu)}")
    if not found["gpus"]:
        print("no GPU: tpde works on the CPU")


def _gpu_line(gpu: dict[str, Any]) -> str:
    memory = f"{gpu['memory_total'] / 2**30:.1f} GiB"
    if gpu["memory_free"] is not None:
        memory = f"{gpu['memory_free'] / 2**30:.1f} of {memory} free"
    parts = [gpu["name"], f"compute capability {gpu['compute_capability']}", memory]
    link = gpu["pcie"]
    if link is not None:
        parts.append(
            f"PCIe generation {link['generation']} of {link['max_generation']}, "
            f"width {link['width']} of {link['max_width']}"
        )
    return ", ".join(parts)


def _version(_: argparse.Namespace) -> None:
    import tpde
    from tpde._core import core

    print(f"tpde {tpde.__version__}, core {core().version()}")
