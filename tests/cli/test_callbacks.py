import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import CONF
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict, read_write

from muwa.cli import callbacks
from muwa.report.status import begin_sweep, planned_runs
from muwa.types.report import PATCH


def test_a_folder_that_is_claimed_is_new_and_nobody_elses(tmp_path):
    """Eight processes' worth of claims at once: eight folders, the first with the plain name."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(callbacks.claimed, [tmp_path / "a" / "12-00-00"] * 8))
    assert {path.name for path in made} == {"12-00-00", *(f"12-00-00-{i}" for i in range(2, 9))}
    assert all(path.is_dir() for path in made)


def test_launches_of_one_time_have_a_folder_each(composed, tmp_path):
    """The pattern is cut to the year, so that all launches are of one time. A multirun tells its runs by an override."""
    out = tmp_path / "it's = out"
    runs = []
    for _ in range(2):
        cfg = composed(
            *(f'hydra.{kind}.dir="{out}/{kind}-${{now:%Y}}"' for kind in ("run", "sweep")), hydra=True
        )
        callbacks.OwnFolder().on_run_start(cfg)
        callbacks.OwnFolder().on_multirun_start(cfg)
        told = OverridesParser.create().parse_override(cfg.hydra.overrides.hydra[-1])
        assert (told.key_or_group, told.value()) == ("hydra.sweep.dir", cfg.hydra.sweep.dir)
        runs += [cfg.hydra.run.dir, cfg.hydra.sweep.dir]
    assert [run.rpartition("-")[2] for run in runs[2:]] == ["2", "2"]
    assert runs[2:] == [f"{run}-2" for run in runs[:2]]
    assert all(Path(run).is_dir() for run in runs)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["seed=0,1"], []], ids=["multirun", "one run"])
def test_two_processes_that_start_at_one_time_have_a_folder_each(miniature, tmp_path, overrides):
    """The second is taken from the clock by each process, so the pattern is cut to the day: all are of one time."""
    out = tmp_path / "it's out"
    kind = "sweep" if overrides else "run"
    command = [sys.executable, str(CONF.parents[1] / "launch.py"), *(["-m"] if overrides else []), *overrides,
               f"dataset.root={miniature}", "curate.dry_run=true", f"hydra.{kind}.dir=${{paths.outputs}}/${{now:%Y}}"]  # fmt: skip
    command.append(f'paths.outputs="{out}"')
    processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
    (first,), (second,) = (list(out.glob(pattern)) for pattern in ("????", "????-2"))
    for folder in (first, second):
        runs = [folder / "0", folder / "1"] if overrides else [folder]
        assert all((run / ".hydra" / "overrides.yaml").is_file() for run in runs)
        assert (folder / "sweep.csv").is_file() == bool(overrides)


def test_a_folder_that_the_user_names_is_taken_as_it_is(composed, tmp_path):
    mine = str(tmp_path / "mine")
    cfg = composed(f"hydra.run.dir={mine}", f"hydra.sweep.dir={mine}", hydra=True)
    callbacks.OwnFolder().on_run_start(cfg)
    callbacks.OwnFolder().on_multirun_start(cfg)
    assert (cfg.hydra.run.dir, cfg.hydra.sweep.dir) == (mine, mine)


def test_a_worker_rank_writes_no_config_of_a_multirun(composed, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    cfg = composed(f"hydra.sweep.dir={tmp_path}", hydra=True)
    callbacks.OwnFolder().on_multirun_start(cfg)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "0")
    callbacks.OwnFolder().on_multirun_start(cfg)
    assert [path.name for path in tmp_path.iterdir()] == ["multirun.yaml"]


@pytest.fixture(params=["run", "multirun"])
def launch(request, composed, tmp_path):
    """A function that starts a run or a multirun with these words in one folder, and the key of that folder."""
    kind = "run" if request.param == "run" else "sweep"
    key = f"hydra.{kind}.dir"

    def start(*words):
        cfg = composed(*words, f"{key}={tmp_path}", hydra=True)
        getattr(callbacks.OwnFolder(), f"on_{request.param}_start")(cfg)
        if kind == "run":  # as Hydra does next
            OmegaConf.save(cfg.hydra.overrides.task, tmp_path / ".hydra" / "overrides.yaml")

    return start, key


@pytest.mark.parametrize(("words", "refused"), [
    (["task.identity=Ada"], False),  # the same one goes on
    (["task.identity=Ada", "runtime.threads=2"], False),
    (["task.identity=Bo"], True),
    (["task.identity=Bo", "stages=[eval]"], False),  # writes no patch
    (["task.identity=Bo", "curate.dry_run=true"], False),
])  # fmt: skip
def test_the_patch_of_another_launch_is_not_written_over(launch, tmp_path, capsys, words, refused):
    start, key = launch
    start("task.identity=Cy")
    start("task.identity=Ada")  # there is no patch yet
    patch = tmp_path / PATCH if key == "hydra.run.dir" else tmp_path / "1" / PATCH
    patch.parent.mkdir(exist_ok=True)
    patch.touch()
    if not refused:
        start(*words)
        return
    with pytest.raises(SystemExit):
        start(*words)
    what = "the patch of a run" if key == "hydra.run.dir" else "the patches of a multirun"
    wanted = f"muwa: {key}={tmp_path}: holds {what} with other settings (task.identity=Ada); want a new folder, or the same settings\n"
    assert capsys.readouterr().err == wanted


@pytest.mark.parametrize(("words", "settings", "runs"), [
    (["seed=0,1,2", "task.identity=Ada,Bo", "model=clip"], {}, 6),
    (["seed=0"], {}, 1),
    (["seed=range(4)"], {"max_batch_size": 2}, 4),
    (["task.identity=Ada,Bo,Cy"], {"params": {"seed": "0,1"}}, 6),
    (["method=glob(slug*)"], {}, len([*(CONF / "method").glob("slug*.yaml")])),
    (["learning_rate=interval(0.1,1)"], {}, None),  # Hydra refuses it next
    (["seed=0,1"], {"_target_": "a.plugin.Sweeper"}, None),
])  # fmt: skip
def test_a_multirun_notes_how_many_runs_come(composed, tmp_path, words, settings, runs):
    begin_sweep(tmp_path, 99)  # of an earlier multirun in the same folder
    cfg = composed(f"hydra.sweep.dir={tmp_path}", hydra=True)
    with read_write(cfg), open_dict(cfg):
        cfg.hydra.overrides.task = words
        cfg.hydra.sweeper.update(settings)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        callbacks.SweepPages().on_multirun_start(cfg)
    assert planned_runs(tmp_path) == runs
