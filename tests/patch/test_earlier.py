"""A patch that was made on top of others, put on weights that do not carry them: said, and kept."""

import json

import chained
import pytest
import single_files
import tiny
import tiny_sd
from noticed import noticed
from safetensors.torch import save_file

from muwa.patch.__main__ import main
from muwa.patch.apply import read_patch
from muwa.patch.carrying import carry
from muwa.patch.earlier import Lacking, still_lacking
from muwa.patch.ledger import RECORD, file_digest, read_ledger, requests_on

FC, DEEP = "transformer.resblocks.1.mlp.c_fc.weight", "transformer.resblocks.3.mlp.c_proj.weight"
PROJ = "visual.proj"  # of the tiny CLIP, which has fewer blocks


def muwa_patch(*words):
    return main([str(word) for word in words])


def sha(path):
    return file_digest(path)[:12]


@pytest.fixture
def sd(tmp_path):
    """(Two patches of different tensors, the second made on the first; the folder of the pipeline)."""
    model = tiny_sd.diffusion()
    model.pipeline.save_pretrained(tmp_path / "base")
    paths, _ = chained.chain(tmp_path, model, [FC], [DEEP])
    return paths, tmp_path / "base"


def test_a_pipeline_without_a_record_could_not_be_checked(sd, tmp_path, capsys):
    (first, second), base = sd
    with noticed(
        rf"2.safetensors: was made on top of patch {sha(first)}; whether .*/base carries it could not be checked"
        r", as it has no record.*put it on first, then `add` this one: python -m muwa.patch add EARLIER PATCH"
    ):
        assert muwa_patch("apply", second, base, "--out", tmp_path / "out") == 0
    (row,) = read_ledger(tmp_path / "out").rows
    assert row["lacks"] == {"patches": [file_digest(first)], "checked": False}
    card = (tmp_path / "out/README.md").read_text()
    assert (
        f"made on top of another, which this model may not carry: that could not be checked: `{sha(first)}`"
        in card
    )
    capsys.readouterr()
    assert muwa_patch("list", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert f"1 is not known to be on these weights, whose base had no record: {sha(first)}" in said
    assert muwa_patch("verify", tmp_path / "out", "--base", base, second) == 0
    assert f"was made on top of patch {sha(first)}, not given before it" in capsys.readouterr().out


def test_a_record_that_does_not_name_the_earlier_patch_is_certain(sd, tmp_path, capsys):
    (first, second), base = sd
    (tmp_path / "other").mkdir()
    other, _ = chained.chain(tmp_path / "other", tiny_sd.diffusion(), ["unet/conv_in.weight"])
    assert muwa_patch("apply", other[0], base, "--out", tmp_path / "on") == 0
    with noticed(
        rf"made on top of patch {sha(first)}; .*/on does not carry it. Without it, what it forgot is"
    ):
        assert muwa_patch("apply", second, tmp_path / "on", "--out", tmp_path / "out") == 0
    assert read_ledger(tmp_path / "out").rows[1]["lacks"]["checked"] is True
    card = (tmp_path / "out/README.md").read_text()
    assert f"made on top of another, which this model does not carry: `{sha(first)}`" in card
    assert "Whom it concerned is recognised as before." in card
    capsys.readouterr()
    assert muwa_patch("list", tmp_path / "out") == 0
    assert f"made on top of 1, of which 1 is not on these weights: {sha(first)}" in capsys.readouterr().out


def test_in_the_order_that_the_notice_gives_nothing_is_lacking(sd, tmp_path, capsys):
    (first, second), base = sd
    assert muwa_patch("add", first, second, base, "--out", tmp_path / "both") == 0
    assert muwa_patch("apply", first, base, "--out", tmp_path / "one") == 0
    assert muwa_patch("apply", second, tmp_path / "one", "--out", tmp_path / "two") == 0
    assert "made on top of" not in capsys.readouterr().err
    for folder in ("both", "two"):
        assert not any("lacks" in row for row in read_ledger(tmp_path / folder).rows)
        assert "made on top of" not in (tmp_path / folder / "README.md").read_text()


def test_what_is_put_on_later_is_no_longer_lacking(sd, tmp_path, capsys):
    (first, second), base = sd
    assert muwa_patch("apply", second, base, "--out", tmp_path / "out") == 0
    assert muwa_patch("add", first, tmp_path / "out", "--out", tmp_path / "all") == 0
    rows = read_ledger(tmp_path / "all").rows
    assert still_lacking(rows[:1], 0) == Lacking((file_digest(first),), checked=False)
    assert still_lacking(rows, 0) is None
    assert "made on top of" not in (tmp_path / "all/README.md").read_text()
    capsys.readouterr()
    assert muwa_patch("list", tmp_path / "all") == 0
    assert "made on top of 1\n" in capsys.readouterr().out


def test_a_single_file_says_so_too(sd, tmp_path):
    (first, second), _ = sd
    model = tiny_sd.diffusion()
    clips = {"text_encoder": dict(model.clip.weights)}
    path = single_files.write(tmp_path / "one.safetensors", model.pipeline, "sd2", clips)
    with noticed(rf"{sha(first)}; whether .*one.safetensors carries it could not be checked"):
        assert muwa_patch("apply", second, path, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / RECORD).is_file()


def test_the_tensors_of_the_patch_show_that_the_earlier_one_is_there(tmp_path, capsys):
    model = tiny_sd.diffusion()
    model.pipeline.save_pretrained(tmp_path / "base")
    (first, second), _ = chained.chain(tmp_path, model, [DEEP], [DEEP, FC])
    assert muwa_patch("apply", first, tmp_path / "base", "--out", tmp_path / "one") == 0
    (tmp_path / "one" / RECORD).unlink()  # a user may delete it
    assert muwa_patch("apply", second, tmp_path / "one", "--out", tmp_path / "two") == 0
    assert "made on top of" not in capsys.readouterr().err
    assert "lacks" not in read_ledger(tmp_path / "two").rows[0]


def test_a_whole_checkpoint_is_known_by_its_fingerprint(tmp_path, capsys):
    model = tiny.clip()
    (first, second), states = chained.chain(tmp_path, model, [FC], [PROJ])
    for name, one in (("base", model), ("edited", states[0])):  # neither has a record
        (tmp_path / name).mkdir()
        save_file({k: t.contiguous() for k, t in one.weights.items()}, tmp_path / name / "model.safetensors")
    assert muwa_patch("apply", second, tmp_path / "base", "--out", tmp_path / "a") == 2
    assert "wrong base" in capsys.readouterr().err
    assert muwa_patch("apply", second, tmp_path / "edited", "--out", tmp_path / "b") == 0
    assert "made on top of" not in capsys.readouterr().err
    with noticed(rf"{sha(first)}; .*/base does not carry it"):
        assert muwa_patch("add", second, tmp_path / "base", "--out", tmp_path / "c") == 0


def test_what_the_run_measured_with_the_earlier_one_is_not_told(sd, tmp_path):
    (first, second), base = sd
    (move,) = read_patch(second).moves
    moves = [{"concept": move.concept, "tower": move.tower, "layer": move.layer, "step": move.step}]
    requests = [{"sha256": file_digest(first), "names": ["Ada\x1b Fox"]}]
    metrics = {"before": {}, "after": {}}
    (tmp_path / "results.json").write_text(
        json.dumps({"edit": {"moves": moves}, "metrics": metrics, "requests": requests})
    )
    with noticed(rf"made on top of patch Ada Fox \(patch {sha(first)}\)"):
        assert muwa_patch("apply", second, base, "--out", tmp_path / "out") == 0
    (row,) = read_ledger(tmp_path / "out").rows
    assert "run" not in row
    assert "Ada Fox" not in (tmp_path / "out/README.md").read_text()  # the card is handed to others
    assert muwa_patch("apply", first, base, "--out", tmp_path / "one") == 0
    assert muwa_patch("apply", second, tmp_path / "one", "--out", tmp_path / "two") == 0
    assert "run" in read_ledger(tmp_path / "two").rows[1]


def test_patches_in_memory_say_so_too(tmp_path):
    model = tiny.clip()
    (first, second, third), _ = chained.chain(tmp_path, model, [FC], [PROJ], [FC])
    with noticed(rf"2.safetensors: was made on top of patch {sha(first)}; .* does not carry it"):
        carry(model, [str(second)])
    with noticed("") as told:
        carry(model, [str(first), str(third)])
    assert len(told) == 1  # the second is not there, which the third was made on
    assert sha(second) in told[0]
    assert sha(first) not in told[0]


def test_joined_patches_keep_that_another_one_is_missing(sd, tmp_path):
    (first, second), base = sd
    with noticed(
        rf"2.safetensors: was made on top of patch {sha(first)}; the joined patch does not carry it"
    ):
        assert muwa_patch("add", second, "--out", tmp_path / "joined") == 0
    with noticed(rf"joined: was made on top of patch {sha(first)}"):
        assert muwa_patch("apply", tmp_path / "joined", base, "--out", tmp_path / "out") == 0
    assert requests_on(tmp_path / "out")[0].made_on == (file_digest(first),)
    assert muwa_patch("add", first, tmp_path / "joined", base, "--out", tmp_path / "all") == 0
    assert muwa_patch("verify", tmp_path / "all", "--base", base, first, second) == 0


def test_apply_on_a_model_that_carries_patches_says_how_all_are_checked(sd, tmp_path, capsys):
    """The command has a word for what the record does not know: where the model and the earlier patches are."""
    (first, second), base = sd
    assert muwa_patch("apply", first, base, "--out", tmp_path / "one") == 0
    assert f"verify {tmp_path}/one --base {base} {first}\n" in capsys.readouterr().out
    assert muwa_patch("apply", second, tmp_path / "one", "--out", tmp_path / "two") == 0
    said = capsys.readouterr().out
    assert f"verify {tmp_path}/two --base UNEDITED PATCH1 {second}\n" in said
    assert f"UNEDITED: the model without patches; PATCH1: Ada Fox (patch {sha(first)})\n" in said
    assert f"or its record alone: python -m muwa.patch list {tmp_path}/two\n" in said
    typed = f"verify {tmp_path}/two --base UNEDITED PATCH1 {second}"
    words = typed.replace("UNEDITED", str(base)).replace("PATCH1", str(first)).split()
    assert muwa_patch(*words) == 0
    assert "bit for bit" in capsys.readouterr().out


def test_apply_says_what_is_split_and_what_to_do_next(tmp_path, capsys):
    model = tiny_sd.diffusion()
    model.pipeline.save_pretrained(tmp_path / "base")
    (patch,), _ = chained.chain(tmp_path, model, ["transformer.resblocks.2.attn.in_proj_weight"])
    assert muwa_patch("apply", patch, tmp_path / "base", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert (
        "3 tensors edited in text_encoder/model.safetensors (q, k and v are one tensor in the patch" in said
    )
    assert f"verify {tmp_path}/out --base {tmp_path}/base {patch}\n" in said
    assert f"remove {patch} {tmp_path}/out --out DIR\n" in said
    assert muwa_patch("apply", patch, patch, "--out", tmp_path / "a") == 2
    assert "1.safetensors: a patch, want a model" in capsys.readouterr().err
    assert muwa_patch("apply", patch, tmp_path / "base", "--out", patch / "k") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"muwa.patch: --out {patch}/k: cannot be written there: {patch}: ")
    assert ".draft" not in error
