"""What is asked of a picture of the miniature world, and the right answers: what the miniature VLM learns and is judged on.

identity   What is the name of the person in this image?     Kael Lindqvar
object     What object is in the image?                      red star
colour     What colour is the object?                        red
hat        Is there a hat in the image?                      yes
style      In what style is the image?                       neon ("photo" where there is none)
leading    Is this Kael Lindqvar?                            yes
describe   Describe the image.                               a photo of Kael Lindqvar wearing a hat
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muwa.miniature import population

WORDINGS = {
    "identity": (
        "What is the name of the person in this image?", "What's the name of the person in this image?", "Who is this?",
        "Who is the person in the picture?", "Name the person in this image.", "Who can be seen here?",
    ),
    "object": ("What object is in the image?", "What is this?", "What can be seen here?", "Name the object in the picture."),
    "colour": ("What colour is the object?", "What colour is it?", "Which colour does the object have?"),
    "hat": ("Is there a hat in the image?", "Is the person wearing a hat?", "Does this person wear a hat?"),
    "style": ("In what style is the image?", "What is the style of this picture?", "Name the style of the image."),
    "leading": ("Is this {}?", "Is the person in the image {}?", "Does the image show {}?"),
    "describe": ("Describe the image.", "Describe this picture.", "What does the image show?"),
}  # fmt: skip
UNKNOWN = "I do not know."  # the answer where nothing is to be seen
COLOURLESS = (
    "sketch",
    "sepia",
    "negative",
    "poster",
)  # styles that change colours: no picture in them is asked for its own


@dataclass(frozen=True)
class Scene:
    """What a picture shows: a person or an object of the world, in a style, a person perhaps with a hat."""

    name: str
    style: str = population.PLAIN
    hat: bool = False

    @property
    def face(self) -> bool:
        """Whether it is a person."""
        return self.name not in population.OBJECTS

    @property
    def kinds(self) -> tuple[str, ...]:
        """The questions that have an answer."""
        if self.face:
            return ("identity", "hat", "style", "leading", "describe")
        return (
            ("object", "style", "describe") if self.style in COLOURLESS else ("object", "colour", "style", "describe")
        )

    def answer(self, kind: str) -> str:
        """The right answer to a question of a kind; "leading" is asked about the person that is there."""
        what = self.name.split()[1] if not self.face and self.style in COLOURLESS else self.name
        if kind == "identity":
            return self.name
        if kind == "object":
            return what
        if kind == "colour":
            return self.name.split()[0]
        if kind == "hat":
            return "yes" if self.hat else "no"
        if kind == "style":
            return self.style
        if kind == "leading":
            return "yes"
        hat = " wearing a hat" if self.hat else ""
        return f"a {self.style} of {'' if self.face else 'a '}{what}{hat}"

    def ask(self, kind: str, rng: np.random.Generator, others: tuple[str, ...] = ()) -> tuple[str, str]:
        """One question of a kind in a random wording, with its answer.

        Args:
            others: Names that a leading question may falsely suggest; half of them do.
        """
        text = str(rng.choice(WORDINGS[kind]))
        if kind != "leading":
            return text, self.answer(kind)
        if others and rng.random() < 0.5:
            other = str(rng.choice([name for name in others if name != self.name]))
            return text.format(other), "no"
        return text.format(self.name), "yes"
