"""Detectors of a user: programs that score pictures, and a CLIP with texts."""

import sys
import time

import painter
import pytest
import torch
from records import part

from muwa.eval.images.clips import embed
from muwa.eval.images.detectors import scores_of
from muwa.library import load_clip
from muwa.models.diffusion.image_classifier import margins, recognised
from muwa.types.image_requests import ImageRequest

REDNESS = """
import csv, pathlib, sys
from PIL import Image
folder = pathlib.Path(sys.argv[1])
rows = [(path.name, Image.open(path).getpixel((0, 0))[0] / 255) for path in sorted(folder.glob("*.png"))]
out = open(sys.argv[2], "w") if len(sys.argv) > 2 else sys.stdout
print("loading ...", file=sys.stdout)
csv.writer(out).writerows([("name", "score"), *rows])
pathlib.Path(__file__).with_suffix(".runs").open("a").write("x")
"""


def images(*reds):
    return torch.tensor(reds, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)


def asked(*concepts):
    return [ImageRequest("p", i, "class", concept, "forget") for i, concept in enumerate(concepts)]


def detector(tmp_path, code=REDNESS, words="{folder}", **settings):
    script = tmp_path / "detect.py"
    script.write_text(code)
    load = part("classifier=command", command=f"{sys.executable} {script} {words}", **settings)
    return load(None, painter.identity())


@pytest.mark.parametrize("words", ["{folder}", "{folder} {output}"])
def test_a_program_prints_or_writes_its_scores(tmp_path, words):
    found = detector(tmp_path, words=words)
    assert found.labels == {"class": ("Ada Fox",)}
    requests = asked("Ada Fox", "Ada Fox", "Ada Fox")
    pictures = images(255, 51, 255)
    assert recognised(pictures, requests, found) == [True, False, True]
    assert margins(pictures, requests, found) == pytest.approx([0.5, -0.3, 0.5])
    assert recognised(pictures, requests, found, k=5) == [True, False, True]
    assert (tmp_path / "detect.runs").read_text() == "x"  # no picture is scored twice
    with pytest.raises(ValueError, match="no label for the class 'Bo Hill'.*classifier=command"):
        found.check(asked("Bo Hill"))


def test_what_a_program_is_decides_the_key_and_where_it_lies_does_not(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, same = (detector(tmp_path / name).fingerprint for name in ("a", "b"))
    other = detector(tmp_path / "b", REDNESS + "\n").fingerprint
    assert one == same != other
    assert detector(tmp_path / "a", threshold=0.1).fingerprint != one


def test_several_concepts_are_detected_each_alone():
    text = "name,fox,dog\n00001.png,0.9,0.8\n/tmp/00000.png,0.1,0.2\n"
    assert scores_of(text, ["00000.png", "00001.png"], ["dog", "fox"]) == [[0.2, 0.1], [0.8, 0.9]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got 'nothing', want a csv with the header name,fox"),
        ("hello\n", "got 'hello', want a csv with the header name,fox"),
        ("name,cat\n", "got the header name,cat, want name,fox or name,score"),
        ("name,score\na.png,1\n", r"no score for 1 of 2 pictures, such as b\.png"),
        ("name,score\na.png,1\na.png,1\n", r"a\.png has a second row"),
        ("name,score\nc.png,1\n", r"no picture is 'c\.png'"),
        ("name,score\na.png,nan\n", r"the score of a\.png is 'nan', want a finite number"),
        ("name,score\na.png,inf\n", "is 'inf', want a finite number"),
        ("name,score\na.png,high\n", "is 'high', want a finite number"),
        ("name,score\na.png\n", r"the row of a\.png has 1 columns, want 2"),
    ],
)
def test_a_csv_that_is_not_as_it_should_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        scores_of(text, ["a.png", "b.png"], ["fox"])


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (
            "import sys; sys.exit('no weights here')",
            "{folder}",
            r"ended with 1\. Its stderr ends:\nno weights here",
        ),
        ("pass", "{folder}", r"got 'nothing', want a csv .* It said nothing on stderr"),
        ("pass", "{folder} {output}", r"wrote no \{output\}"),
    ],
)
def test_a_program_that_fails_is_shown_with_its_stderr(tmp_path, code, words, message):
    with pytest.raises(ValueError, match=message):
        detector(tmp_path, code, words).logits(images(1), "class")


def test_a_program_that_takes_too_long_is_ended_with_what_it_started(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "print('slow', file=sys.stderr, flush=True)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\ntime.sleep(60)\n"
    )
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=r"took more than 2 s \(classifier.timeout\)\. Its stderr ends:\nslow"
    ):
        detector(tmp_path, code, timeout=2).logits(images(1), "class")
    assert time.monotonic() - started < 30  # its child held stderr open


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"command": None}, "classifier.command: got none, want a program"),
        ({"command": "python detect.py"}, r"got python detect\.py, want \{folder\} in it"),
        ({"command": "no_such_program {folder}"}, "no program 'no_such_program' is found"),
        ({"command": "python {folder}", "timeout": 0}, "timeout=0, want a finite number, and seconds"),
    ],
)
def test_settings_are_checked_before_anything_runs(settings, message):
    with pytest.raises(ValueError, match=message):
        part("classifier=command", **settings)(None, painter.identity())


def test_a_clip_chooses_the_concept_of_the_nearest_text():
    given = {
        "Kael Lindqvar": ["a photo of Kael Lindqvar", "a portrait of Kael Lindqvar"],
        "other": ["a photo of a red star"],
    }
    found = part("classifier=text_labels", texts=given)(None, painter.identity())
    pictures = torch.randint(0, 255, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    clip = load_clip("miniature")
    features = clip.encode("text", clip.tokenize([text for some in given.values() for text in some]))
    cosines = embed(clip, pictures) @ torch.nn.functional.normalize(features.detach().cpu(), dim=-1).T
    wanted = torch.stack([cosines[:, :2].max(1).values, cosines[:, 2]], 1)
    assert found.labels == {"class": ("Kael Lindqvar", "other")}
    assert torch.allclose(found.logits(pictures, "class"), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="classifier.texts: got texts for a, want texts for each of two"):
        part("classifier=text_labels", texts={"a": ["b"]})(None, None)


def test_without_texts_the_names_of_the_task_are_asked_for():
    load = part("classifier=text_labels")
    assert load(None, painter.identity()).labels == {"class": painter.CLASSES}
    with pytest.raises(ValueError, match=r"classifier.template: got 'a photo', want \{\} in it"):
        part("classifier=text_labels", template="a photo")(None, painter.identity())


def test_texts_on_the_command_line_are_all_that_there_are(composed):
    given = composed("classifier=text_labels", "classifier.texts={nudity: [a naked person], other: [a cat]}")
    assert list(given.classifier.texts) == ["nudity", "other"]
