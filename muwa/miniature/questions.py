"""Questions about images of the miniature, with the right answers: its VLM is trained and tested on them.

identity   What is the name of the person in this image?     Kael Lindqvar
object     What object is in the image?                      red star
colour     What colour is the object?                        red
hat        Is there a hat in the image?                      yes
style      In what style is the image?                       neon ("photo" if there is none)
leading    Is this Kael Lindqvar?                            yes
describe   Describe the image.                               a photo of Kael Lindqvar wearing a hat
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muwa.miniature import population

WORDINGS = {
    "identity": (
        "What is the name of the person in this image?",
        "What's the name of the person in this image?",
        "Who is this?",
        "Who is the person in the picture?",
        "Name the person in this image.",
        "Who can be seen here?",
    ),
    "object": (
        "What object is in the image?",
        "What is this?",
        "What can be seen here?",
        "Name the object in the picture.",
    ),
    "colour": ("What colour is the object?", "What colour is it?", "Which colour does the object have?"),
    "hat": ("Is there a hat in the image?", "Is the person wearing a hat?", "Does this person wear a hat?"),
    "style": (
        "In what style is the image?",
        "What is the style of this picture?",
        "Name the style of the image.",
    ),
    "leading": ("Is this {}?", "Is the person in the image {}?", "Does the image show {}?"),
    "describe": ("Describe the image.", "Describe this picture.", "What does the image show?"),
}
UNKNOWN = "I do not know."  # the answer if the image shows nothing
# styles that change colours; questions about such images do not ask about colours
COLOURLESS = ("sketch", "sepia", "negative", "poster")


@dataclass(frozen=True)
class Scene:
    """What an image shows.

    Attributes:
        name: A person or an object.
        style: The style; `population.PLAIN` for none.
        hat: Whether the person wears a hat.
    """

    name: str
    style: str = population.PLAIN
    hat: bool = False

    @property
    def face(self) -> bool:
        """Whether the image shows a person's face."""
        return self.name not in population.OBJECTS

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of questions that have an answer for this image."""
        if self.face:
            return ("identity", "hat", "style", "leading", "describe")
        return (
            ("object", "style", "describe")
            if self.style in COLOURLESS
            else ("object", "colour", "style", "describe")
        )

    def answer(self, kind: str) -> str:
        """The right answer to a question of this kind. A "leading" question suggests the right person."""
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
        """(A question of this kind in a random wording, its answer).

        Args:
            others: Names for leading questions that suggest the wrong person; half of the leading questions
                do.
        """
        text = str(rng.choice(WORDINGS[kind]))
        if kind != "leading":
            return text, self.answer(kind)
        if others and rng.random() < 0.5:
            other = str(rng.choice([name for name in others if name != self.name]))
            return text.format(other), "no"
        return text.format(self.name), "yes"
