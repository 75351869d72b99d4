"""Every command that README, docs, conf and code show a user: it composes, it builds, and what needs no weights runs."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
from omegaconf import OmegaConf

from muwa import command_line, config

ROOT = Path(__file__).parent.parent
TEXTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "muwa" / "conf").rglob("*.yaml")),
    *sorted((ROOT / "muwa").rglob("*.py")),
    ROOT / "launch.py",
]
LAUNCH = re.compile(
    r"(?:python|torchrun(?: -\S+(?: \d+)?)*) launch\.py"
    r"|(?<![\w`./-])(?:python -m )?muwa(?= (?:-m )?'?[a-z_]+[\w./]*=)"  # `muwa model=sd`, not its tools
)
HYDRA_FLAGS = {"-m", "--multirun", "--cfg", "job", "--help", "--info"}
SWEEPER = re.compile(r"hydra/sweeper=|hydra\.sweeper\.")  # of an extra that need not be installed
OWN_FILES = re.compile(
    r"\b(?:FOLDER|FILE\d?|DIR|NAME|PIPELINE_FOLDER|DATE|TIME)\b|\.\.\.|\$\w+|kael\.safetensors"
)


@dataclass(frozen=True)
class Command:
    """A documented command: where it stands, its words after launch.py, and the text of these."""

    where: str
    words: tuple[str, ...]
    text: str

    @property
    def overrides(self) -> list[str]:
        """Hydra overrides; the first value of each that a multirun sweeps."""
        given = [word for word in self.words if word not in HYDRA_FLAGS and not SWEEPER.match(word)]
        return [first(word) for word in given] if "-m" in self.words else given


def first(word: str) -> str:
    """An override with the first of its swept values; a list or a quoted value is one value.

    >>> first("method=ga,ft"), first("method.strengths=[1,2]"), first("a='b,c'")
    ('method=ga', 'method.strengths=[1,2]', "a='b,c'")
    >>> first("a=choice(x,y)"), first("a=tag(log,interval(0.1,3))")
    ('a=x', 'a=0.1')
    """
    key, _, value = word.partition("=")
    if among := re.fullmatch(r"(?:tag\(\w+,)?(?:choice|interval|range)\(([^,()]+),.*", value):
        return f"{key}={among[1]}"
    return word if value[:1] in ("[", "{", "'", '"') else f"{key}={value.split(',')[0]}"


def commands() -> list[Command]:
    """All commands, each once; a line that ends in a backslash goes on in the next."""
    found: dict[tuple[str, ...], Command] = {}
    for path in TEXTS:
        text = re.sub(r"\\\n(?:#|//)?\s*", " ", path.read_text())
        for number, line in enumerate(text.splitlines(), 1):
            for match in LAUNCH.finditer(line):
                if path.suffix == ".py" and line[: match.start()].strip():
                    continue  # part of a message in code
                rest = re.split(r"`|\s{2,}#|\s#\s|\s*\|\s|\)$", line[match.end() :])[0]
                words = tuple(shlex.split(rest))
                if "--config-dir" in words:
                    continue  # an example of docs/extending.md, which test_extending.py runs
                found.setdefault(words, Command(f"{path.relative_to(ROOT)}:{number}", words, rest))
    return list(found.values())


COMMANDS = commands()
ENVIRONMENT = {"ALL": "Kael_Lindqvar", "DEV": "Kael_Lindqvar"}


def shown(command: Command) -> str:
    return " ".join(command.words) or "(every default)"


def test_there_are_commands_of_every_kind_of_text():
    assert len(COMMANDS) > 100
    kinds = ("README.md", "docs/", "muwa/conf/", "muwa/")
    assert all(any(command.where.startswith(kind) for command in COMMANDS) for kind in kinds)


@pytest.fixture(scope="module")
def equal_parts_once():
    """Parts with equal settings are instantiated once: most commands have most parts in common."""
    made, instantiate = {}, config.instantiate

    def once(plain, **how):
        key = repr((plain, how))
        if key not in made:
            made[key] = instantiate(plain, **how)
        return made[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(config, "instantiate", once)
        yield


@pytest.mark.usefixtures("equal_parts_once")
@pytest.mark.parametrize("command", COMMANDS, ids=shown)
def test_a_documented_command_composes_and_builds(command):
    overrides = [re.sub(r"\$(\w+)", lambda m: ENVIRONMENT[m[1]], word) for word in command.overrides]
    overrides = [word.replace("local-dir:FOLDER", f"local-dir:{ROOT}") for word in overrides if word != "..."]
    parts = config.build(config.composed(*overrides))
    assert set(parts) == set(config.PARTS)


LATER = ("docs/log.md",)  # it keeps what was typed


@pytest.mark.parametrize("command", [one for one in COMMANDS if not one.where.startswith(LATER)], ids=shown)
def test_a_documented_command_is_quoted_where_a_shell_would_change_it(command):
    """zsh looks for files where brackets are bare, and ends with "no matches found"; bash changes braces."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", command.text)
    assert not set("[]{}*?()<>") & set(bare), (
        f"{command.where}: put the word in single quotes: {command.text}"
    )


MARKDOWN = [path for path in TEXTS if path.suffix == ".md" and path.name != "log.md"]
LINE = re.compile(
    r"^ {4,}((?:OMP_\S+ |MUWA_\S+ )?(python|muwa|pip|torchrun|wandb|make|export|eval)\b.*)$", re.M
)


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.stem)
def test_a_documented_line_may_be_pasted_into_zsh(path):
    """An interactive zsh reads a comment as more words. muwa leaves them out, if zsh does nothing with them."""
    for line, program in LINE.findall(path.read_text()):
        command, mark, comment = line.partition(" # ")
        assert not mark or program in ("python", "muwa", "torchrun"), (
            f"{program} would read the comment: {line}"
        )
        assert not set("[]{}()<>*?;&|$`'\"!~") & set(comment), line
        if program == "pip":
            assert "[" not in re.sub(r"'[^']*'", "", command), line


NEEDS = re.compile(  # weights, data sets or machines that are not part of muwa
    r"laion_celeba|dataset=unlearncanvas|(?:classifier|recogniser)=unlearncanvas|cuda|hydra/launcher=slurm"
    r"|model=(?:sd15|sd21|sdxl|llava|clip_hf)|table1(?!.*dataset=miniature)"
    r"|model=clip_(?!vit_b32 model\.pretrained=null)(?:vit|eva|siglip)"  # larger random ones take hours of a CPU
)
RUNNABLE = [one for one in COMMANDS if not OWN_FILES.search(shown(one)) and not NEEDS.search(shown(one))]
# The last part of a key of `eval` or `layer_search` -> its value: few samples, images, answers and steps.
FEW = {
    "max_evals": 2, "candidates": 1, "confirmations": 1, "pictures": 12, "retain_pictures": 4, "sampling_steps": 4,
    "seeds": 1, "forget_seeds": 2, "kept_seeds": 1, "retain": 2, "cross": 1, "utility": 8,
    "nearest": 1, "others": 16, "steps": 4, "prompts": 2, "subset_size": 2, "examples": 4, "limit": 16,
}  # fmt: skip
FEWER = {
    "task.limits.forget_pairs": 24, "task.limits.retain_pairs": 96, "dataset.utility": 0.1, "dataset.utility_probe": 0.05,
    "method.rounds": 1, "method.epochs": 1,
}  # fmt: skip
# Also where a command gives more.
SHORTER = {"method.iterations": 4, "method.pictures": 8, "eval.soft_prompt.steps": 8}


def shortened(word: str) -> str:
    """An override, with the value of `SHORTER` in place of its own."""
    key = word.partition("=")[0]
    return f"{key}={SHORTER[key]}" if key in SHORTER else word


def few(command: Command) -> list[str]:
    """Overrides that make a command short, of settings that it has and does not give itself."""
    given = {word.partition("=")[0].lstrip("+~") for word in command_line.adapted(command.overrides)}
    cfg = config.composed(*command.overrides)
    wanted = {key: value for key, value in FEWER.items() if OmegaConf.select(cfg, key) is not None}
    for group in ("eval", "layer_search"):
        for key, value in whole_numbers(OmegaConf.to_container(cfg[group]), group):
            wanted[key] = min(value, FEW.get(key.rpartition(".")[2], value))
    return [f"{key}={value}" for key, value in wanted.items() if key not in given]


def whole_numbers(node, before):
    """(Key, value) of the whole numbers that are written in nested mappings, and not in what these refer to."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from whole_numbers(value, f"{before}.{name}")
        elif type(value) is int:
            yield f"{before}.{name}", value


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNNABLE, ids=shown)
def test_a_documented_command_that_needs_no_weights_runs(command, miniature, shared):
    """On few samples, where it does not say how many, and few steps; of a multirun the first run; on one cache."""
    words = command_line.adapted(command.overrides)
    fixed = [f"paths.outputs={shared / 'documented'}", f"dataset.root={miniature}", "runtime.progress=false"]
    line = [forked.LAUNCH, *map(shortened, command.overrides), *few(command), *fixed]
    if "--cfg" in command.words:
        line += ["--cfg", "job"]
    done = forked.run(*line, cwd=shared)
    assert done.returncode == 0, done.stderr[-2000:]
    ends_early = {"stages=[curate]", "curate.dry_run=true"} & {*words} or "--cfg" in command.words
    assert ("Finished in" in done.stdout) != bool(ends_early)
