import jinja2
import pytest

from muwa.report.text import environment, rounded


def test_templates_escape_and_refuse_what_is_not_given():
    assert environment().from_string("{{ a }}").render(a="<b>") == "&lt;b&gt;"
    with pytest.raises(jinja2.UndefinedError, match="'a' is undefined"):
        environment().from_string("{{ a }}").render()


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        (-0.0, ".1f", "0.0"),
        (-0.049, "+.1f", "0.0"),
        (0.049, "+.1f", "0.0"),
        (-0.051, "+.1f", "-0.1"),
        (0.051, "+.1f", "+0.1"),
        (-1000.0, ",.0f", "-1,000"),
        (-0.4, ",.0f", "0"),
        (-1e-9, ".3g", "-1e-09"),
        (float("-inf"), ".1f", "-inf"),
    ],
)
def test_a_number_that_rounds_to_zero_has_no_sign(value, spec, text):
    assert rounded(value, spec) == text
