from dataclasses import replace

from report.finished import report

from muwa.report import alt


def test_what_is_seen_is_said_with_its_numbers(tmp_path):
    made = report(tmp_path)
    (search,) = made.edit.searches
    assert alt.bars(made.before, made.after) == (
        "Bars of rates, before to after the edit: forget/top1 100 to 0 %, retain/top1 90 to 88 %."
    )
    assert alt.pareto(search) == (
        "Dots of importance against alignment for 1 layers. On the Pareto front: visual.proj. Edited: visual.proj."
    )
    assert alt.trace(search) == (
        "Lines of rates on the probe set by the size of the step: 2 steps on 1 layers. Chosen: vision "
        "visual.proj, 20 % of the layer: forget top-5 0 %, forget top-1 0 %, retain top-1 90 %, utility top-1 80 %."
    )
    assert alt.trace(replace(search, chosen=None)).endswith("No step was chosen.")
    assert alt.pareto(replace(search, chosen=None)).endswith("Edited: none.")


def test_gains_name_the_largest_and_the_place_of_what_was_edited(tmp_path):
    (search,) = report(tmp_path).edit.searches
    (score,) = search.scores.values()
    scores = {f"layer {i}": replace(score, gain=10.0 - i) for i in range(6)} | {
        "visual.proj": replace(score, gain=5.5)
    }
    text = alt.gains(replace(search, scores=scores))
    assert text == (
        "Bars of the gain of 7 layers; the largest are layer 0, layer 1, layer 2, layer 3 and 3 more. "
        "Edited: visual.proj, number 6."
    )
    assert alt.gains(replace(search, scores=scores, chosen=None)).endswith("None was edited.")


def test_similarity_says_what_changed():
    before, after = [[0.5, 0.1], [0.1, 0.5]], [[0.2, 0.1], [0.1, 0.48]]
    assert alt.similarity(["Ada", "Bo"], before, after, ["Ada"]) == (
        "Two heat maps of 2 names. Similarity of images with their own name, before to after: Ada 0.50 to 0.20. "
        "The other names change by at most 0.02."
    )
