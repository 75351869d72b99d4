"""Weight files whose names every version of transformers 5 reads."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

# Prefix of a tower in a file -> the level below it that transformers before 5.6 wants. Later versions read
# files with it and without it.
LEVELS = {"vision_tower.": "vision_model.", "": "text_model."}


def name_towers_as_before(file: Path, prefix: str) -> None:
    """Rename the parameters of a CLIP tower in a safetensors file as transformers before 5.6 wrote them.

    From 5.6 on, transformers writes `vision_tower.embeddings...`, and reads
    `vision_tower.vision_model.embeddings...` too. Versions before that read nothing but the latter.

    Args:
        file: A `model.safetensors` that `save_pretrained` wrote; replaced.
        prefix: A key of `LEVELS`: where the tower is. "" is a `CLIPTextModel`, which is all tower.
    """
    level = LEVELS[prefix]
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118

    def renamed(name: str) -> str:
        rest = name.removeprefix(prefix)
        is_new = name.startswith(prefix) and not rest.startswith(level)
        return f"{prefix}{level}{rest}" if is_new else name

    draft = file.with_suffix(".draft")
    save_file({renamed(name): tensor for name, tensor in tensors.items()}, draft, metadata=metadata)
    draft.replace(file)
