import json

import pytest

import muwa
from muwa.eval.clip.retrained_models import Card, check_retrained, load_retrained
from muwa.miniature import retrained
from muwa.miniature.train import clip as train


def test_a_folder_is_named_by_all_that_makes_the_model():
    kael, lior = "Kael Lindqvar", "Lior Garrowby"
    one = retrained.folder_name(Card((kael,), 0, 34))
    assert one.startswith("without-Kael_Lindqvar-seed-0-epochs-34-")
    assert one == retrained.folder_name(Card((kael,), 0, 34, "bf16"))
    both = retrained.folder_name(Card((kael, lior), 0, 34))
    assert both.startswith("without-Kael_Lindqvar-and-1-more-seed-0-epochs-34-")
    cards = [Card((kael,), 1, 34), Card((kael,), 0, 2), Card((lior,), 0, 34), Card((kael,), 0, 34, "fp32")]
    names = [one, both, *map(retrained.folder_name, cards)]
    assert len({name.rpartition("-")[2] for name in names}) == 6
    assert retrained.folder_name(Card((lior, kael), 0, 34)) == both


def test_training_code_makes_another_folder_and_comments_do_not(monkeypatch):
    reached = []

    def code(modules):
        reached.extend(modules)
        return "changed"

    before = retrained.folder_name(Card(("Kael Lindqvar",), 0, 34))
    monkeypatch.setattr(retrained, "code_fingerprint", code)
    assert retrained.folder_name(Card(("Kael Lindqvar",), 0, 34)) != before
    assert reached == [
        "muwa.miniature.train.clip"
    ]  # digests of code leave out comments: tests/cache/test_code.py


def test_only_what_is_not_there_is_trained_and_drafts_do_not_count(tmp_path, monkeypatch):
    asked = []

    def fake(root, out, *, without, epochs, seed, tokenizer, precision):
        asked.append((without, seed, epochs, tokenizer, precision))
        out.mkdir(parents=True)
        (out / "open_clip_config.json").write_text("{}")
        if seed == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_clip", fake)
    found = retrained.train_retrained(tmp_path, tmp_path / "out", without=["Kael Lindqvar"], seeds=[0, 1])
    assert asked == [
        (["Kael Lindqvar"], 0, 34, retrained.MINIATURE, "bf16"),
        (["Kael Lindqvar"], 1, 34, retrained.MINIATURE, "bf16"),
    ]
    assert (
        retrained.train_retrained(tmp_path, tmp_path / "out", without=["Kael Lindqvar"], seeds=[1, 0])
        == found[::-1]
    )
    assert len(asked) == 2
    cards = [json.loads((folder / "twin.json").read_text()) for folder in found]
    said = {"without": "Kael Lindqvar", "epochs": 34, "precision": "bf16"}
    assert cards == [said | {"seed": seed} for seed in (0, 1)]
    (found[0] / "twin.json").unlink()  # as folders of earlier versions lack it
    retrained.train_retrained(tmp_path, tmp_path / "out", without=["Kael Lindqvar"], seeds=[0])
    assert json.loads((found[0] / "twin.json").read_text()) == cards[0]
    assert len(asked) == 2
    with pytest.raises(KeyboardInterrupt):
        retrained.train_retrained(tmp_path, tmp_path / "out", without=["Kael Lindqvar"], seeds=[9])
    assert not (tmp_path / "out" / retrained.folder_name(Card(("Kael Lindqvar",), 9, 34))).exists()


def test_an_unknown_person_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        retrained.main(["--without", "Kael Lindqvist", "--out", "x"])
    assert ended.value.code == 2
    assert "Kael_Lindqvar" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        retrained.main(["--without", "Kael Lindqvar", "--out", "x", "--seeds", "1", "1"])
    assert "--seeds that differ" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("closed_tars")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO")
def test_a_short_training_makes_a_model_that_compares(miniature, tmp_path, capsys):
    args = ["--without", "kael_lindqvar", "Lior Garrowby", "--out", str(tmp_path)]
    args += ["--seeds", "5", "--epochs", "1", "--precision", "fp32"]
    assert retrained.main([*args, "--world", str(miniature / "world")]) == 0
    (folder,) = tmp_path.iterdir()
    assert f"eval.retrain_gap.retrained=[{folder}]" in capsys.readouterr().out
    model = muwa.load_clip()
    check_retrained(model, [str(folder)], ["Lior Garrowby", "Kael Lindqvar"], "k")
    assert [one.spec for one in load_retrained(model, [str(folder)])] == [model.spec]
