"""A command that is killed at any of its write points, and typed again, ends as if nothing had happened."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

from muwa.patch.apply import write_patch
from muwa.types.edit import Edit, Move

ROOT = Path(__file__).parents[2]
LAUNCH = str(ROOT / "launch.py")
SMALL = (
    "task.limits.forget_pairs=8", "task.limits.retain_pairs=16", "task.limits.eval_retain=1",
    "dataset.utility_probe=0.02", "dataset.utility=0.02", "eval=[forget,retain]", "runtime.progress=false",
    "runtime.threads=1", "layer_search.max_evals=6", "layer_search.candidates=1", "layer_search.towers=[vision]",
)  # fmt: skip
WITHOUT_SEARCH = tuple(word for word in SMALL if not word.startswith("layer_search"))
HEAVY = ("muwa.unlearning", "muwa.models.clip.open_clip", "muwa.layer_search.choice", "muwa.methods.slug_whitened",
         "muwa.report.sweep", "webdataset", "open_clip", "hydra")  # fmt: skip
CLIP = str(ROOT / "muwa" / "miniature" / "clip")


FIRST, EVERY = map(
    int, os.environ.get("MUWA_TEST_KILLS", "1,1").split(",")
)  # to try a part of the write points


def killed(folder, command, *, before=(), imports=HEAVY):
    """What `killing.py` says of a command."""
    given = {"command": command, "before": before, "imports": imports, "first": FIRST, "every": EVERY}
    spec = folder / "spec.json"
    spec.write_text(json.dumps(given))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killing.py")), str(spec)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    log = folder / "output.txt"
    assert done.returncode == 0, done.stderr[-3000:] + (log.read_text()[-3000:] if log.is_file() else "")
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{found['kills']} kills at {found['points']} write points")
    assert not found["faults"], "\n".join(found["faults"])
    return found


TOY = """
import sys
from pathlib import Path
import torch
from muwa.cache.store import Store
from muwa.drafts import new_folder, write_text
sys.path.insert(0, {tests!r})
from toy import double, triple
out = Path(sys.argv[1])
store = Store(out / "cache")
first = store.get("double", double, torch.arange(4.0), 3)
second = store.get("triple", triple, first)
with new_folder(out / "folder") as draft:
    (draft / "a.txt").write_text(str(second.tolist()))
write_text(out / "results.json", '{{"sum": ' + str(second.sum().item()) + '}}')
"""


@pytest.mark.whole
def test_the_cache_and_files_of_a_toy_program_survive_every_kill(tmp_path):
    (tmp_path / "program.py").write_text(TOY.format(tests=str(Path(__file__).parent)))
    found = killed(tmp_path, [str(tmp_path / "program.py"), "{out}"], imports=["torch", "muwa.cache.store"])
    assert found["kills"] == found["points"] >= 10


@pytest.mark.whole
def test_the_helper_finds_a_file_that_is_written_in_place(tmp_path):
    """The check can fail: here a reader meets half a file, and a second attempt adds to what the first left."""
    (tmp_path / "program.py").write_text(
        "import os, sys\nfrom pathlib import Path\nout = Path(sys.argv[1])\n"
        "with (out / 'a.json').open('a') as file:\n"
        "    file.write('{\"a\": ')\n    file.flush()\n    os.fsync(file.fileno())\n    file.write('1}')\n"
    )
    with pytest.raises(AssertionError, match=r"1: a.json: Expecting value(.|\n)*1: differs in|1: a.json"):
        killed(tmp_path, [str(tmp_path / "program.py"), "{out}"], imports=[])


def launch(miniature, *words):
    """The words of a run whose folders all lie in {out}."""
    paths = [
        "paths.outputs={out}",
        "dataset.curated={out}/curated",
        "hydra.run.dir={out}/run",
        "hydra.sweep.dir={out}/sweep",
    ]
    return [LAUNCH, *words, *paths, f"dataset.root={miniature}"]


@pytest.mark.slow
def test_a_cold_run_survives_every_kill(miniature, tmp_path):
    assert killed(tmp_path, launch(miniature, *SMALL))["points"] > 20


@pytest.mark.slow
def test_a_multirun_survives_kills(miniature, tmp_path):
    words = launch(miniature, "-m", *WITHOUT_SEARCH, "layer_search=fixed", "layer_search.layer=visual.proj",
                   "layer_search.relative_step=0.2", "task.identity=Kael_Lindqvar,Lior_Garrowby")  # fmt: skip
    assert killed(tmp_path, words)["points"] > 10


@pytest.mark.slow
def test_curation_survives_every_kill(miniature, tmp_path):
    words = launch(
        miniature, "stages=[curate]", "task.identity=[Kael_Lindqvar,Lior_Garrowby]", "runtime.progress=false"
    )
    assert killed(tmp_path, words)["points"] > 10


@pytest.mark.slow
def test_a_fine_tuning_survives_every_kill(miniature, tmp_path):
    words = launch(miniature, *WITHOUT_SEARCH, "method=ft", "method.epochs=2")
    assert killed(tmp_path, words)["points"] > 20


@pytest.fixture
def patches(tmp_path):
    """Two patches of the tiny CLIP in p0 and p1, and its weights in base.safetensors, below `tmp_path`."""
    model = tiny.clip()
    save_file(
        {name: tensor.contiguous() for name, tensor in model.weights.items()}, tmp_path / "base.safetensors"
    )
    for i, layer in enumerate(("visual.proj", "text_projection")):
        delta = 0.1 * torch.ones_like(model.weights[layer])
        write_patch(
            tmp_path / f"p{i}", Edit({layer: delta}, (Move("Ada Fox", "vision", layer, 1.5, 0.1),)), model
        )


PATCHING = {
    "apply": ["{base}/p0", "{base}/base.safetensors", "--out", "{out}/edited"],
    "remove": ["{base}/p0", "{base}/edited", "--out", "{out}/restored"],
    "add": ["{base}/p0", "{base}/p1", "--out", "{out}/both.safetensors"],
}


@pytest.mark.parametrize(
    "action",
    ["apply", pytest.param("remove", marks=pytest.mark.slow), pytest.param("add", marks=pytest.mark.slow)],
)
@pytest.mark.whole
def test_patches_survive_every_kill(tmp_path, patches, action):
    before = [["muwa.patch", "apply", *PATCHING["apply"][:-1], "{base}/edited"]] if action == "remove" else []
    found = killed(
        tmp_path, ["muwa.patch", action, *PATCHING[action]], before=before, imports=["muwa.patch.change"]
    )
    assert found["kills"] == found["points"] >= 1


@pytest.fixture
def few_images(miniature, tmp_path):
    """A world with the first 64 images of one shard: the trainings read nothing else of it."""
    shard = Path("shards/00000.tar")
    world = tmp_path / "world"
    (world / shard).parent.mkdir(parents=True)
    shutil.copy(miniature / "world" / "version.txt", world)
    with tarfile.open(miniature / "world" / shard) as whole, tarfile.open(world / shard, "w") as part:
        keys = []
        for member in whole:
            keys += [] if (key := member.name.partition(".")[0]) in keys else [key]
            if len(keys) > 64:
                break
            part.addfile(member, whole.extractfile(member))
    return world


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "steps"),
    [("classifier", ["--steps", "4"]), ("sd", ["--autoencoder-steps", "1", "--steps", "1", "1"])],
)
def test_trainings_of_the_miniature_survive_every_kill(few_images, tmp_path, model, steps):
    words = [f"muwa.miniature.train_{model}", "--out", "{out}/made", "--world", str(few_images), *steps]
    assert killed(tmp_path, words, imports=[f"muwa.miniature.train.{model}"])["points"] >= 5
