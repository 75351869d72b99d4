"""What a user types: every form is read as meant, or refused with the word to type instead."""

import ast
import re
import shlex
import subprocess
import sys

import pytest
from conftest import CONF
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from muwa import command_line, config
from muwa.command_line import adapted
from muwa.data.samples import as_typed, find_name, fold

ROOT = CONF.parents[1]


def value_of(word):
    """What Hydra reads in an override, by its own parser."""
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("recogniser=clip", "classifier=clip"),
        ("method.gradient=clip,answer", "gradient_source=clip,answer"),
        ("eval.retrain_gap.twins=[a,b]", "eval.retrain_gap.retrained=[a,b]"),
        ("+recogniser.folder=a=b", "+classifier.folder=a=b"),
    ],
)
def test_a_setting_by_its_old_name_is_taken_and_its_present_name_is_said(old, new, capsys):
    assert command_line.present_name(old) == new
    assert "is now called" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word", ["seed=1", "method.gradients=null", "task.identity=recogniser", "-m", "recogniser"]
)
def test_all_else_on_the_command_line_stays_as_it_is(word, capsys):
    assert command_line.present_name(word) == word
    assert not capsys.readouterr().err


def test_worker_ranks_leave_no_folder(monkeypatch):
    monkeypatch.setattr("sys.argv", ["launch.py", "seed=1"])
    command_line.adapt_command_line()
    assert sys.argv == ["launch.py", "seed=1"]
    monkeypatch.setenv("RANK", "1")
    command_line.adapt_command_line()
    assert sys.argv[:3] == ["launch.py", "seed=1", "hydra.run.dir=."]
    assert "hydra.output_subdir=null" in sys.argv


REAL = [  # names of people as they are written, which Hydra's grammar stumbles over
    "Beyoncé", "Sinéad O'Connor", "O'Brien", "Jay (rapper)", "P!nk", "李小龙", "Tom & Jerry", "Prince #1", "a=b",
    'Ann "A" Lee', """Ann "A" O'Lee""", "Björk: live", "~Zed", "{x}", "Ἀριστοτέλης", "देवी",
]  # fmt: skip


def advised(message):
    """The words that a message gives to type, as a shell reads them."""
    return shlex.split(message.partition("; type ")[2])


@pytest.mark.parametrize("name", REAL)
def test_a_real_name_is_read_or_the_message_gives_the_word_to_type(name):
    word = f"task.identity={name}"
    try:
        (word,) = adapted([word])
    except ValueError as error:
        (word,) = advised(str(error))
    assert adapted([word]) == [word]
    assert value_of(word) == name


def test_several_names_are_quoted_one_by_one():
    with pytest.raises(ValueError, match="only in quotes") as caught:
        adapted(["task.identity=[Zoë,Bo Hill,'Cy']"])
    assert value_of(*advised(str(caught.value))) == ["Zoë", "Bo Hill", "Cy"]
    with pytest.raises(ValueError, match="only in quotes") as caught:
        adapted(["-m", "task.identity=Zoë,O'Brien"])
    assert [one.text for one in value_of(*advised(str(caught.value))).list] == ["Zoë", "O'Brien"]


def test_a_name_with_a_comma_is_no_sweep_unless_asked_for():
    with pytest.raises(ValueError, match="reads several values here") as caught:
        adapted(["task.identity=Smith, John"])
    (as_list, one) = re.findall("Type '(.+?)' for a list, '(.+?)' for one text", str(caught.value))[0]
    assert (value_of(as_list), value_of(one)) == (["Smith", "John"], "Smith, John")
    assert adapted(["--multirun", "task.identity=Smith,John"])[1] == "task.identity=Smith,John"


@pytest.mark.parametrize("word", ["dataset.shards=[a", "task.aliases={a", "task.identity=[é"])
def test_a_bracket_that_does_not_close_gets_no_quotes(word):
    with pytest.raises(ValueError, match="check its brackets and quotes"):
        adapted([word])


def test_the_launcher_says_it_in_one_line():
    done = subprocess.run(
        [sys.executable, "launch.py", "task.identity=Beyoncé"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "muwa: task.identity=Beyoncé: Hydra reads this value only in quotes; "
        "type 'task.identity=\"Beyoncé\"'\n"
    )


@pytest.mark.parametrize(
    "name", ["Kael Lindqvar", "Beyoncé Knowles", "O'Brien", "Jay (rapper)", "李小龙", "Dr. No"]
)
def test_the_names_that_a_refusal_offers_can_be_typed(name):
    with pytest.raises(ValueError, match="Nearest") as caught:
        find_name(f"{name} x", [name], "here")
    typed = as_typed(name)
    assert f"Nearest: {typed}." in str(caught.value)
    (word,) = adapted(shlex.split(f"task.identity={typed}"))
    assert find_name(value_of(word), [name, "Bo"], "here") == name


@pytest.mark.parametrize("typed", [
    "task.aliases={Kael Lindqvar: [K. Lindqvar]}",
    "+task.aliases={Kael Lindqvar: [K. Lindqvar]}",
    "task.aliases.Kael Lindqvar=[K. Lindqvar]",
    "+task.aliases.Kael Lindqvar=[K. Lindqvar]",
    'task.aliases."Kael Lindqvar"=[K. Lindqvar]',
])  # fmt: skip
def test_every_form_of_an_alias_is_taken(typed):
    assert config.part("task=celeba", typed).aliases == {"Kael Lindqvar": ["K. Lindqvar"]}


def test_an_alias_of_a_name_with_other_signs():
    for name in ("O'Brien", "Beyoncé Knowles", "will.i.am", "A$AP Rocky"):
        (key,) = config.part("task=celeba", f"task.aliases.{name}=[x]").aliases
        assert fold(key) == fold(name)
    with pytest.raises(
        ValueError, match=r"no key in this script. Write it into a file conf/experiment/NAME.yaml"
    ):
        adapted(["task.aliases.李小龙=[Bruce Lee]"])


@pytest.mark.parametrize("name", ["..", "../..", "a/../../b", "/abs", "", "'..'"])
def test_a_run_stays_below_the_folder_of_outputs(name):
    with pytest.raises(ValueError, match=r"name=.*: want a name for a folder below paths.outputs"):
        adapted([f"name={name}"])


@pytest.mark.parametrize("group", ["model", "eval", "task", "logger"])
@pytest.mark.parametrize("nothing", ["null", ""])
def test_a_group_without_a_choice_lists_the_choices(group, nothing):
    with pytest.raises(ValueError, match=rf"{group}={nothing}: want one of \w+"):
        adapted([f"{group}={nothing}"])
    assert adapted(["experiment=null", "name=a/b"]) == ["experiment=null", "name=a/b"]


def test_a_misspelt_setting_is_still_refused():
    with pytest.raises(Exception, match="'aliasses' is no setting of task; nearest: task.aliases"):
        config.part("task=celeba", "task.aliasses={Kael Lindqvar: [K. Lindqvar]}")


def test_each_mapping_with_keys_of_the_user_is_known():
    """All settings of muwa/conf/ that are an empty mapping by default; a file of eval has its group as first key."""
    empty = {
        f"{path.parent.name}.{key}"
        for path in CONF.rglob("*/*.yaml")
        for key in empty_mappings(OmegaConf.to_container(OmegaConf.load(path)))
    }
    assert empty == {*command_line.NAMED}


def test_a_mapping_replaces_the_one_that_was_there_and_a_key_is_added_to_it():
    whole, more = "task.aliases={Ada Fox: [A]}", "task.aliases.Bo Hill=[B]"
    assert config.part("task=celeba", more, whole).aliases == {"Ada Fox": ["A"]}
    assert config.part("task=celeba", whole, more).aliases == {"Ada Fox": ["A"], "Bo Hill": ["B"]}


def empty_mappings(node, prefix=""):
    for key, value in node.items():
        if value == {}:
            yield f"{prefix}{key}"
        elif isinstance(value, dict):
            yield from empty_mappings(value, f"{prefix}{key}.")


@pytest.mark.parametrize(("typed", "read"), [
    ("dataset.celeba=~/celeba", "dataset.celeba={home}/celeba"),
    ("dataset.celeba=~", "dataset.celeba={home}"),
    ("dataset.shards=[~/a.tar, ~/b.tar]", "dataset.shards=[{home}/a.tar, {home}/b.tar]"),
    ("dataset.celeba=~/a,~/b", "dataset.celeba={home}/a,{home}/b"),
    ("model.name=local-dir:~/clip", "model.name=local-dir:{home}/clip"),
    ('dataset.celeba="~/my model"', 'dataset.celeba="{home}/my model"'),
    ('dataset.celeba="/data/a~/b"', 'dataset.celeba="/data/a~/b"'),
    ('dataset.celeba="/data/~"', 'dataset.celeba="/data/~"'),
    ('task.prompt="a ~/b"', 'task.prompt="a ~/b"'),
])  # fmt: skip
def test_the_home_folder(typed, read, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert adapted(["-m", typed])[1] == read.format(home="/home/ada")


def test_the_home_folder_in_files_and_from_python(monkeypatch, composed):
    monkeypatch.setenv("HOME", "/home/ada")
    dataset = config.part("dataset=laion_celeba", celeba="~/celeba", shards=["~/a.tar", "pipe:cat ~/b"])
    assert dataset.keywords["celeba"] == "/home/ada/celeba"
    assert dataset.keywords["shards"] == ["/home/ada/a.tar", "pipe:cat ~/b"]
    cfg = composed()
    cfg.dataset.celeba, cfg.paths.cache = "~/celeba", "~/cache"  # as an experiment file may have it
    assert config.build(cfg)["dataset"].keywords["celeba"] == "/home/ada/celeba"
    assert config.settings(cfg)["paths"]["cache"] == "/home/ada/cache"


GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
ADVICE = re.compile(
    rf"(?<![\w.-])(?P<key>(?:{'|'.join([*GROUPS, 'stages', 'runtime', 'paths', 'curate', 'report', 'learning_rate'])})(?:\.[a-z_]\w*)*)=(?P<value>\S*)"
)


def advice():
    """Settings that messages of the code advise: (module, key). An f-string's expressions stand as X."""
    for path in sorted((ROOT / "muwa").rglob("*.py")):
        tree = ast.parse(path.read_text())
        docs = {id(node.body[0].value) for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
        parts = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in docs | parts
            ):
                text = node.value
            else:
                continue
            for match in ADVICE.finditer(text):
                yield path.relative_to(ROOT).as_posix(), match["key"]


def all_settings():
    """Every key that a file of muwa/conf/ sets, and the groups themselves."""
    found = {*GROUPS, *keys(OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml")))}
    for path in CONF.rglob("*/*.yaml"):
        found |= set(keys(OmegaConf.to_container(OmegaConf.load(path)), f"{path.parent.name}."))
    return found


def keys(node, prefix=""):
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


def test_every_setting_that_a_message_advises_exists():
    advised_in = list(advice())
    assert len(advised_in) > 40
    known = all_settings()
    assert not {f"{where}: {key}" for where, key in advised_in if key not in known and key[:6] != "hydra."}
