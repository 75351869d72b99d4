"""Peak memory and time of patching a large vision-language model's folder, against what loading it would take.

    python -m bench.patch_memory DIR --gigabytes 14        # writes DIR/base (deleted again unless --keep), in shards of 5 GB

The folder is a LLaVA's by its file names: the miniature's vision tower, a language model of zeros to fill it. The patch is
applied by `python -m muwa.patch apply` in a process of its own, whose peak resident memory is what is reported.
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

from muwa.library import load_clip as load
from muwa.patch import names
from muwa.patch.apply import write_patch
from muwa.types.edit import Edit

LAYER = "visual.transformer.resblocks.2.attn.in_proj_weight"
SHARD = 5e9  # bytes


def write_folder(folder: Path, gigabytes: float) -> None:
    """A folder of `gigabytes` in fp16 shards with an index, as `save_pretrained` lays one out."""
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
        own = shards[0] if i == 0 else {}
        size = min(SHARD, gigabytes * 1e9 - i * SHARD)
        blocks = int(size // (block.numel() * 2))
        own |= {f"language_model.model.layers.{i}.{j}.weight": block.clone() for j in range(blocks)}
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        save_file(own, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))


def main() -> None:
    """Command line: write the folder, patch it, print peak memory and time, and the ratio to the folder's size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=14)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    base, out, patch = args.folder / "base", args.folder / "edited", args.folder / "patch.safetensors"
    writer = "import sys; from pathlib import Path; from bench.patch_memory import write_folder; "
    writer += "write_folder(Path(sys.argv[1]), float(sys.argv[2]))"
    if not base.exists():
        subprocess.run([sys.executable, "-c", writer, str(base), str(args.gigabytes)], check=True)
    clip = load()
    clip = clip.with_weights({k: w.half().float() for k, w in clip.weights.items()})
    write_patch(patch, Edit({LAYER: torch.full_like(clip.weights[LAYER], 1e-3)}, ()), clip, {"model": "bench"})
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "muwa.patch", "apply", patch, base, "--out", out])
    _, status, usage = os.wait4(process.pid, 0)  # of this child alone, not of the one that wrote the folder
    if status:
        raise SystemExit("muwa.patch.apply apply failed")
    seconds, peak = time.perf_counter() - started, usage.ru_maxrss * 1024
    size = sum(path.stat().st_size for path in base.iterdir())
    print(f"{size / 1e9:.1f} GB patched in {seconds:.0f} s; peak resident memory {peak / 1e9:.2f} GB, "
          f"1/{size / peak:.0f} of the folder")  # fmt: skip
    if not args.keep:
        shutil.rmtree(base)
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
