"""The page of --help: every choice has a line, every command of it composes."""

import re
import shlex

import pytest
from conftest import CONF
from hydra.core.hydra_config import HydraConfig

from muwa import config
from muwa.cli import help_page

FILES = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name != "hydra")


@pytest.fixture(scope="module")
def page():
    """The page, without what Hydra fills in."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    config.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["eval=[forget,mia]"], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    yield cfg.hydra.help.template
    HydraConfig.instance().cfg = None


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_choice_says_in_a_sentence_what_it_is(path):
    assert re.fullmatch(r"\S.{10,}[.?!]|\S.{10,}model\.", help_page.about(path)), path


def test_every_group_has_a_line_and_its_choices(page):
    assert set(help_page.GROUPS) == {path.parent.name for path in FILES} | {"hydra/launcher"}
    lines = page.splitlines()
    for group, what in help_page.GROUPS.items():
        assert f"{group}   {what}" in lines
    for path in FILES:
        assert re.search(rf"^  [* ] {re.escape(path.stem)} ", page, re.M), path


def test_what_is_in_use_stands_first_and_is_marked(page):
    method = page[page.index("\nmethod   ") :].splitlines()
    assert method[2].startswith("  * slug_whitened ")
    assert re.findall(r"^  \* (\w+)", page[page.index("\neval   ") : page.index("\nquestions")], re.M) == [
        "forget", "mia",
    ]  # fmt: skip


def commands(page):
    """The ten commands of the page, as lists of words after the name of the program."""
    text = page[page.index("Ten commands") : page.index("Groups:")]
    program = help_page.started()
    return [
        shlex.split(line)[len(shlex.split(program)) :]
        for line in text.splitlines()
        if line.startswith(f"  {program} ")
    ]


def test_the_ten_commands_compose_and_build(page):
    found = commands(page)
    assert len(found) == 10
    for words in found:
        overrides = [re.sub(r"=([^\[,]*),.*", r"=\1", word) if "-m" in words else word for word in words]
        assert set(config.build(config.composed(*(word for word in overrides if word != "-m")))) == set(
            config.PARTS
        )


def test_words_that_a_shell_would_change_are_quoted_and_lines_are_short(page):
    assert max(map(len, page.splitlines())) <= help_page.WIDTH
    program = f"  {help_page.started()} "
    for line in page[page.index("Ten commands") : page.index("Groups:")].splitlines():
        if line.startswith(program):
            assert not set("[]{}*?()<>") & set(re.sub(r"'[^']*'", "", line)), line


def test_an_own_group_and_an_own_choice_have_their_place(tmp_path):
    own = tmp_path / "conf"
    for name in ("method/mine", "colour/red"):
        (own / name).parent.mkdir(parents=True)
        (own / f"{name}.yaml").write_text(f"# {name.replace('/', '=')} -- a step of mine.   Code: x.py\n")
    text = help_page.choices([CONF, own], {"method": "mine"})
    assert re.search(r"^  \* mine +a step of mine\.$", text, re.M)
    assert re.search(r"^colour   your own\n    red +a step of mine\.$", text, re.M)


def test_how_muwa_is_started_here():
    assert help_page.shortest() == "python launch.py"
