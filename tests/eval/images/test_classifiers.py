import os
from dataclasses import replace

import numpy as np
import painter
import pytest
import timm
import tiny
import tiny_sd
import torch
from PIL import Image
from records import part
from safetensors.torch import save_file

from muwa import config
from muwa.eval.images.classifiers import classifier, task_labels, timm_models, zero_shot
from muwa.eval.images.clips import embed
from muwa.types.edit import Edit
from muwa.types.image_requests import ImageRequest

SHAPE = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "stem_width": 8}
LABELS = ["Artist_Sketch", "Van_Gogh", "Seed_Images"]


def net(labels=3):
    with torch.random.fork_rng():
        torch.manual_seed(labels)
        return timm.create_model("resnet18", pretrained=False, num_classes=labels, **SHAPE).eval()


def settings(path, **changed):
    """Settings of `classifier` for a small residual network."""
    plain = {
        "architecture": "resnet18",
        "options": SHAPE,
        "checkpoint": str(path),
        "labels": LABELS,
        "size": 32,
        "mean": [0.5],
        "std": [0.25],
        "source": "ask the author",
    }
    return plain | changed


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same weights, saved in four ways."""
    root, weights = tmp_path_factory.mktemp("weights"), net().state_dict()
    save_file(weights, root / "plain.safetensors")
    torch.save(weights, root / "plain.pth")
    torch.save(
        {"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": {"lr": 0.1}}, root / "level.pth"
    )
    torch.save({"state_dict": {f"module.{name}": t for name, t in weights.items()}}, root / "parallel.pth")
    return root


def images(n=5, side=48):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8))


@pytest.mark.parametrize("name", ["plain.safetensors", "plain.pth", "level.pth", "parallel.pth"])
def test_logits_are_those_of_the_network_on_images_that_pillow_resized(files, name):
    one = classifier(**settings(files / name))
    resized = [
        Image.fromarray(p.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BILINEAR)
        for p in images()
    ]
    x = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in resized]).float() / 255
    with torch.no_grad():
        want = torch.cat([net()((row[None] - 0.5) / 0.25) for row in x])
    assert torch.allclose(one(images()), want, atol=0.02)
    same = images(side=32)
    with torch.no_grad():
        assert torch.allclose(one(same), net()((same.float() / 255 - 0.5) / 0.25), atol=1e-5)


def test_a_row_depends_on_its_image_alone(files):
    one = classifier(**settings(files / "plain.pth"))
    many = images(40)
    assert torch.allclose(one(many)[37], one(many[37:38])[0], atol=1e-5)


def test_the_fingerprint_is_of_weights_labels_and_preparation_and_not_of_the_file(files):
    def made(name="plain.pth", **changed):
        return timm_models(
            domains={"style": lambda: classifier(**settings(files / name, **changed))}, device="cpu"
        ).fingerprint

    assert made() == made("level.pth") == made("plain.safetensors", source="elsewhere")
    others = [made(size=64), made(mean=[0.4]), made(std=[0.5, 0.5, 0.5]), made(labels=LABELS[::-1])]
    weights = net().state_dict()
    weights["bn1.running_mean"] += 1
    save_file(weights, files / "moved.safetensors")
    assert len({made(), *others, made("moved.safetensors")}) == 6


def test_labels_come_from_a_file(files):
    (files / "labels.txt").write_bytes("".join(f"{one}\r\n" for one in LABELS).encode("utf-8-sig"))
    judge = timm_models(
        domains={
            "style": lambda: classifier(**settings(files / "plain.pth", labels=str(files / "labels.txt")))
        },
        device="cpu",
    )
    assert judge.labels == {"style": tuple(LABELS)}
    judge.check([ImageRequest("", 0, "style", "Van Gogh", "forget")])
    with pytest.raises(ValueError, match="no label for the class 'Cats'; it knows 0"):
        judge.check([ImageRequest("", 0, "class", "Cats", "cross")])


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        (
            {"checkpoint": "gone.pth"},
            FileNotFoundError,
            "classifier.domains.style: no checkpoint gone.pth. To get it: ask the author",
        ),
        ({"labels": "gone.txt"}, FileNotFoundError, "no file of labels gone.txt. To get it: ask the author"),
        ({"labels": ["a", "b"]}, ValueError, r"is not a resnet18 of 2 labels: .*fc.weight"),
        ({"labels": ["a", "b", "a"]}, ValueError, "want labels, each once, got 3 of which 2 differ"),
        ({"architecture": "resnet1001"}, ValueError, "timm has no 'resnet1001'"),
        ({"options": {**SHAPE, "chanels": 3}}, ValueError, "timm has no 'resnet18' with options .*chanels"),
    ],
)
def test_what_is_missing_or_wrong_is_named(files, changed, error, says):
    with pytest.raises(error, match=says):
        timm_models(
            domains={"style": lambda: classifier(**settings(files / "plain.pth", **changed))}, device="cpu"
        )


class Trap:
    def __reduce__(self):
        return print, ("unpickled",)


def test_a_file_that_would_run_code_is_refused(files, capsys):
    torch.save({"state_dict": Trap()}, files / "trap.pth")
    with pytest.raises(
        ValueError, match=r"trap.pth: cannot be read as weights alone: it holds __builtin__\.print"
    ):
        classifier(**settings(files / "trap.pth"))
    torch.save({"epoch": 3}, files / "empty.pth")
    with pytest.raises(
        ValueError, match="empty.pth: no weights in it; looked at its top and under model_state_dict"
    ):
        classifier(**settings(files / "empty.pth"))
    (files / "noise.safetensors").write_bytes(b"no weights")
    with pytest.raises(
        ValueError, match=r"noise.safetensors: the file is a text, not weights \(no weights\)"
    ):
        classifier(**settings(files / "noise.safetensors"))
    assert capsys.readouterr().out == ""


def test_a_checkpoint_of_a_compiled_and_distributed_network_is_read(files):
    weights = {f"module._orig_mod.{name}": tensor for name, tensor in net().state_dict().items()}
    torch.save({"state_dict": weights}, files / "wrapped.pth")
    assert (
        classifier(**settings(files / "wrapped.pth")).fingerprint
        == classifier(**settings(files / "plain.pth")).fingerprint
    )


def test_weights_of_another_network_are_shown(files):
    weights = {f"backbone.{name}": tensor for name, tensor in net().state_dict().items()}
    torch.save(weights, files / "other.pth")
    message = (
        rf"is not a resnet18 of 3 labels: {len(weights)} missing: .*; {len(weights)} unexpected: backbone\."
    )
    with pytest.raises(ValueError, match=message):
        classifier(**settings(files / "other.pth"))


def test_zero_shot_takes_the_label_whose_prompt_is_nearest():
    clip, labels = tiny.clip(), {"class": list(tiny.NAMES), "style": ["neon", "photo"]}
    judge = zero_shot(clip=tiny.clip, labels=labels, templates={"class": "a {}", "style": "in {}"})
    for domain, template in (("class", "a {}"), ("style", "in {}")):
        told = torch.cat(
            [clip.encode("text", tiny.tokenize([template.format(name)])) for name in labels[domain]]
        )
        assert torch.allclose(judge.logits(images(), domain), embed(clip, images()) @ told.T, atol=1e-5)
    seen = [Image.fromarray(p.permute(1, 2, 0).numpy()).resize((32, 32)) for p in images()]
    x = (
        torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in seen]).float() / 127.5
        - 1
    )
    assert torch.allclose(
        embed(clip, images()), torch.cat([clip.encode("vision", row[None]) for row in x]), atol=1e-5
    )


def test_the_fingerprint_of_zero_shot_is_of_clip_labels_and_templates():
    def made(seed=0, labels=("a", "b"), template="a {}"):
        return zero_shot(
            clip=lambda: tiny.clip(seed), labels={"class": labels}, templates={"class": template}
        ).fingerprint

    assert made() == made()
    assert len({made(), made(seed=1), made(labels=("b", "a")), made(template="the {}")}) == 4


def test_labels_without_a_template_are_refused():
    with pytest.raises(ValueError, match="the domain 'style' wants labels and a template"):
        zero_shot(
            clip=tiny.clip,
            labels={"class": ["a"], "style": ["b"]},
            templates={"class": "a {}", "style": "no place"},
        )
    with pytest.raises(ValueError, match="the domain 'style' wants labels and a template"):
        zero_shot(clip=tiny.clip, labels={"class": ["a"]}, templates={"class": "a {}", "style": "in {}"})


def edited(model):
    """The tiny pipeline after an edit of its text encoder."""
    layer = "transformer.resblocks.2.attn.in_proj_weight"
    return model.edited(Edit({layer: torch.ones_like(model.clip.weights[layer])}, ()))


def test_the_pipelines_clip_classifies_over_the_names_of_the_task():
    model, task = tiny_sd.diffusion(), painter.identity()
    found = part("classifier=pipeline_clip")(model, task)
    assert found.labels == {"class": painter.CLASSES}
    clip = model.clip
    of_names = torch.cat(
        [clip.encode("text", clip.tokenize([f"a photo of {name}"])) for name in painter.CLASSES]
    )
    want = embed(clip, images(side=64)) @ of_names.T
    assert torch.allclose(found.logits(images(side=64), "class"), want, atol=1e-5)


def test_an_edit_does_not_change_the_classifier_nor_its_fingerprint():
    model, task = tiny_sd.diffusion(), painter.identity()
    load = part("classifier=pipeline_clip")
    before, after = load(model, task), load(edited(model), task)
    assert before.fingerprint == after.fingerprint
    assert torch.equal(before.logits(images(), "class"), after.logits(images(), "class"))
    assert before.fingerprint != load(model, painter.kind_class()).fingerprint


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (painter.identity(), {"class": painter.CLASSES}),
        (painter.style(), {"style": painter.STYLES, "class": painter.CLASSES[3:]}),
        (painter.kind_class(), {"class": painter.CLASSES[3:], "style": painter.STYLES[1:]}),
    ],
    ids=lambda one: getattr(one, "kind", ""),
)
def test_labels_are_the_names_that_the_task_asks_for(task, labels):
    """All names that are forgotten or have an image, in the domains of their requests."""
    assert task_labels(task) == labels
    found = part("classifier=pipeline_clip")(tiny_sd.diffusion(), task)
    replace(part("eval=[canvas]")["canvas"], classifier=found, retain=None, cross=None).check(None, task)


def test_a_name_without_an_image_is_no_label():
    names = task_labels(replace(tiny.task(), probe=tiny.split()))["class"]
    assert names == tiny.NAMES
    few = tiny.split()
    few = replace(few, retain=few.retain.select([0]), utility=few.utility.select([0]))  # both show Bo Hill
    assert task_labels(replace(tiny.task(), probe=few, eval=few))["class"] == tiny.NAMES[:2]


def test_a_task_of_one_name_is_refused():
    one = tiny.split()
    one = replace(one, retain=one.retain.select([]), utility=one.utility.select([]))
    with pytest.raises(
        ValueError, match=r"the task has 1 name of the domain 'class' \(Ada Fox\), want at least 2"
    ):
        part("classifier=pipeline_clip")(tiny_sd.diffusion(), replace(tiny.task(), probe=one, eval=one))


def test_a_domain_without_a_template_is_refused():
    with pytest.raises(ValueError, match="the domain 'style' wants labels and a template"):
        part("classifier=pipeline_clip", templates={"class": "a {}"})(tiny_sd.diffusion(), painter.style())


@pytest.mark.parametrize("name", ["miniature", "clip"])
def test_other_classifiers_take_any_model_and_task(name):
    load = part(f"classifier={name}")
    assert load(None, None).fingerprint == load(tiny_sd.diffusion(), painter.style()).fingerprint


def targets(cfg):
    """Where the config's measures and search get their classifier from."""
    nodes = [cfg.layer_search, *cfg.eval.values()]
    return {node.classifier._target_.rpartition(".")[2] for node in nodes if "classifier" in node}


@pytest.mark.parametrize("model", ["sd15", "sd21", "sdxl"])
def test_a_real_pipeline_is_not_judged_by_the_miniature(composed, model):
    cfg = composed(
        f"model={model}", "dataset=laion_celeba", "task.identity=Elon_Musk", "eval=[canvas,quality,attacks]"
    )
    config.build(cfg)
    assert targets(cfg) == {"pipeline_clip"}
    clips = [node.clip for node in cfg.eval.values() if "clip" in node]
    assert len(clips) == 3
    assert {(clip._target_, clip.name) for clip in clips} == {("muwa.eval.images.clips.unedited_clip", None)}


def test_the_miniature_pipeline_is_judged_by_the_miniatures_classifiers(composed):
    assert targets(composed("model=sd")) == {"load"}
    assert composed("model=sd").classifier._target_ == "muwa.miniature.classifier.load"


@pytest.mark.parametrize("order", [1, -1])
def test_a_classifier_on_the_command_line_wins_over_the_models(composed, order):
    overrides = ["model=sd15", "classifier=unlearncanvas"][::order]
    assert targets(composed(*overrides)) == {"timm_models"}
    assert targets(composed("model=sd", "classifier=pipeline_clip")) == {"pipeline_clip"}


def test_a_network_is_read_once_and_again_when_its_file_changed(tmp_path):
    net = timm.create_model("resnet18", num_classes=2)
    settings = dict(architecture="resnet18", options={}, checkpoint=str(tmp_path / "w.safetensors"), size=32,
                    labels=["a", "b"], mean=[0.5], std=[0.5], source="ask")  # fmt: skip
    save_file(net.state_dict(), settings["checkpoint"])
    first, again = classifier(**settings), classifier(**settings)
    assert again.net is first.net
    assert again.fingerprint == first.fingerprint
    save_file({name: weight + 1 for name, weight in net.state_dict().items()}, settings["checkpoint"])
    os.utime(settings["checkpoint"], ns=(1, 1))
    changed = classifier(**settings)
    assert changed.net is not first.net
    assert changed.fingerprint != first.fingerprint
