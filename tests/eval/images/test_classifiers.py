import numpy as np
import pytest
import timm
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file

from muwa.eval.images.classifiers import classifier, embed, timm_models, zero_shot
from muwa.types.image_requests import ImageRequest

SHAPE = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "stem_width": 8}
LABELS = ["Artist_Sketch", "Van_Gogh", "Seed_Images"]


def net(labels=3):
    with torch.random.fork_rng():
        torch.manual_seed(labels)
        return timm.create_model("resnet18", pretrained=False, num_classes=labels, **SHAPE).eval()


def settings(path, **changed):
    """Settings of `classifier` for a small residual network."""
    plain = {"architecture": "resnet18", "options": SHAPE, "checkpoint": str(path), "labels": LABELS, "size": 32,
             "mean": [0.5], "std": [0.25], "source": "ask the author"}  # fmt: skip
    return plain | changed


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same weights in four wrappings."""
    root, weights = tmp_path_factory.mktemp("weights"), net().state_dict()
    save_file(weights, root / "plain.safetensors")
    torch.save(weights, root / "plain.pth")
    torch.save({"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": {"lr": 0.1}}, root / "level.pth")
    torch.save({"state_dict": {f"module.{name}": t for name, t in weights.items()}}, root / "parallel.pth")
    return root


def pictures(n=5, side=48):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8))


@pytest.mark.parametrize("name", ["plain.safetensors", "plain.pth", "level.pth", "parallel.pth"])
def test_logits_are_those_of_the_network_on_pictures_that_pillow_resized(files, name):
    one = classifier(**settings(files / name))
    resized = [
        Image.fromarray(p.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BILINEAR) for p in pictures()
    ]
    x = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in resized]).float() / 255
    with torch.no_grad():
        want = torch.cat([net()((row[None] - 0.5) / 0.25) for row in x])
    assert torch.allclose(one(pictures()), want, atol=0.02)
    same = pictures(side=32)
    with torch.no_grad():
        assert torch.allclose(one(same), net()((same.float() / 255 - 0.5) / 0.25), atol=1e-5)


def test_a_row_is_its_own_pictures_however_many_there_are(files):
    one = classifier(**settings(files / "plain.pth"))
    many = pictures(40)
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
    (files / "labels.txt").write_text("\n".join(LABELS) + "\n")
    judge = timm_models(
        domains={"style": lambda: classifier(**settings(files / "plain.pth", labels=str(files / "labels.txt")))},
        device="cpu",
    )
    assert judge.labels == {"style": tuple(LABELS)}
    judge.check([ImageRequest("", 0, "style", "Van Gogh", "forget")])
    with pytest.raises(ValueError, match="no label for the class 'Cats'; it knows 0"):
        judge.check([ImageRequest("", 0, "class", "Cats", "cross")])


@pytest.mark.parametrize(("changed", "error", "says"), [
    ({"checkpoint": "gone.pth"}, FileNotFoundError, "classifier.domains.style: no checkpoint gone.pth. To get it: ask the author"),
    ({"labels": "gone.txt"}, FileNotFoundError, "no file of labels gone.txt. To get it: ask the author"),
    ({"labels": ["a", "b"]}, ValueError, r"is not a resnet18 of 2 labels: .*fc.weight"),
    ({"labels": ["a", "b", "a"]}, ValueError, "want labels, each once, got 3 of which 2 differ"),
    ({"architecture": "resnet1001"}, ValueError, "timm has no 'resnet1001'"),
    ({"options": {**SHAPE, "chanels": 3}}, ValueError, "timm has no 'resnet18' with options .*chanels"),
])  # fmt: skip
def test_what_is_missing_or_wrong_is_named(files, changed, error, says):
    with pytest.raises(error, match=says):
        timm_models(domains={"style": lambda: classifier(**settings(files / "plain.pth", **changed))}, device="cpu")


class Trap:
    def __reduce__(self):
        return print, ("unpickled",)


def test_a_file_that_would_run_code_is_refused(files, capsys):
    torch.save({"state_dict": Trap()}, files / "trap.pth")
    with pytest.raises(ValueError, match="trap.pth: cannot be read as weights alone"):
        classifier(**settings(files / "trap.pth"))
    torch.save({"epoch": 3}, files / "empty.pth")
    with pytest.raises(ValueError, match="empty.pth: no weights in it; looked at its top and under model_state_dict"):
        classifier(**settings(files / "empty.pth"))
    (files / "noise.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="noise.safetensors: cannot be read as weights alone"):
        classifier(**settings(files / "noise.safetensors"))
    assert capsys.readouterr().out == ""


def test_zero_shot_takes_the_label_whose_prompt_is_nearest():
    clip, labels = tiny.clip(), {"class": list(tiny.NAMES), "style": ["neon", "photo"]}
    judge = zero_shot(clip=tiny.clip, labels=labels, templates={"class": "a {}", "style": "in {}"})
    for domain, template in (("class", "a {}"), ("style", "in {}")):
        told = torch.cat([clip.encode("text", tiny.tokenize([template.format(name)])) for name in labels[domain]])
        assert torch.allclose(judge.logits(pictures(), domain), embed(clip, pictures()) @ told.T, atol=1e-5)
    seen = [Image.fromarray(p.permute(1, 2, 0).numpy()).resize((32, 32)) for p in pictures()]
    x = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in seen]).float() / 127.5 - 1
    assert torch.allclose(
        embed(clip, pictures()), torch.cat([clip.encode("vision", row[None]) for row in x]), atol=1e-5
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
            clip=tiny.clip, labels={"class": ["a"], "style": ["b"]}, templates={"class": "a {}", "style": "no place"}
        )
    with pytest.raises(ValueError, match="the domain 'style' wants labels and a template"):
        zero_shot(clip=tiny.clip, labels={"class": ["a"]}, templates={"class": "a {}", "style": "in {}"})
