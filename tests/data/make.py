"""Cuts the test data from the study's files: python tests/data/make.py ../shared/data"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

Q_PROJ = "layers.5.self_attn.q_proj.weight"
GATE_PROJ = "layers.5.mlp.gate_proj.weight"

# folder: (source file, tensor, rows, checkpoints)
PIECES = {
    "rl": ("rl_bf16", Q_PROJ, 384, ("step20", "step21", "step28")),
    "sft_bf16": ("sft_bf16", Q_PROJ, 256, ("base", "lr1e-5_step300")),
    "sft_fp32": ("sft_fp32", GATE_PROJ, 96, ("base", "lr1e-5_step300")),
    "pretrain_fp32": ("pretrain_fp32", GATE_PROJ, 64, ("step1000", "step1050")),
}


def main(source: Path) -> None:
    here = Path(__file__).parent
    for folder, (file, tensor, rows, checkpoints) in PIECES.items():
        (here / folder).mkdir(exist_ok=True)
        with safe_open(source / f"{file}.safetensors", framework="pt") as opened:
            for checkpoint in checkpoints:
                rows_kept = opened.get_tensor(f"{checkpoint}/{tensor}")[:rows].contiguous()
                path = here / folder / f"{checkpoint}.safetensors"
                save_file({f"model.{tensor}": rows_kept}, path, metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
