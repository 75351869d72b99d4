"""Peak memory and time of patching the folder of a large vision-language model, beside the folder's size.

    python -m bench.patch_memory DIR --gigabytes 14      # writes DIR/base in shards of 5 GB; --keep keeps it

The folder has the file names of a LLaVA: the miniature's vision tower, and a language model of zeros to fill
it. `python -m muwa.patch apply` applies the patch in a process of its own. The peak is that process' resident
memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench import entry
from muwa.library import load_clip as load
from muwa.patch import names
from muwa.patch.apply import write_patch
from muwa.types.edit import Edit

LAYER = "visual.transformer.resblocks.2.attn.in_proj_weight"
SHARD = 5e9  # bytes


def write_folder(folder: Path, gigabytes: float) -> None:
    """Write a folder of `gigabytes` in fp16 shards with an index, in the layout of `save_pretrained`."""
    folder.mkdir(parents=True)
    clip = load()
    tower = {k: w.half() for k, w in clip.weights.items() if k.startswith("visual.")}
    shards: list[dict[str, torch.Tensor]] = [
        {
            f"vision_tower.{name}": t
            for name, t in names.to_hf(tower).items()
            if not name.startswith("visual_projection")
        }
    ]
    count = -(-int(gigabytes * 1e9) // int(SHARD))
    block = torch.zeros(4096, 4096, dtype=torch.float16)
    index: dict[str, str] = {}
    for i in range(count):
        tensors = shards[0] if i == 0 else {}
        size = min(SHARD, gigabytes * 1e9 - i * SHARD)
        blocks = int(size // (block.numel() * 2))
        tensors |= {f"language_model.model.layers.{i}.{j}.weight": block.clone() for j in range(blocks)}
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))


def main() -> None:
    """Command line: write the folder, patch it, print time and peak memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=entry.positive, default=14)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    base, out, patch = args.folder / "base", args.folder / "edited", args.folder / "patch.safetensors"
    writer = "import sys; from pathlib import Path; from bench.patch_memory import write_folder; "
    writer += "write_folder(Path(sys.argv[1]), float(sys.argv[2]))"
    if not base.exists():
        subprocess.run([sys.executable, "-c", writer, str(base), str(args.gigabytes)], check=True)
    clip = load()
    clip = clip.with_weights({k: w.half().float() for k, w in clip.weights.items()})
    write_patch(
        patch, Edit({LAYER: torch.full_like(clip.weights[LAYER], 1e-3)}, ()), clip, {"model": "bench"}
    )
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "muwa.patch", "apply", patch, base, "--out", out])
    _, status, usage = os.wait4(process.pid, 0)  # this process alone, not the one that wrote the folder
    if status:
        raise SystemExit("muwa.patch apply failed")
    seconds, peak = time.perf_counter() - started, usage.ru_maxrss * 1024
    size = sum(path.stat().st_size for path in base.iterdir())
    print(
        f"{size / 1e9:.1f} GB patched in {seconds:.0f} s; peak resident memory {peak / 1e9:.2f} GB, "
        f"1/{size / peak:.0f} of the folder"
    )
    if not args.keep:
        shutil.rmtree(base)
        shutil.rmtree(out)


if __name__ == "__main__":
    entry.run("bench.patch_memory", main)
