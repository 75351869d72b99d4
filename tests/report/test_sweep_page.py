import json
import re

from report.finished import FIRST_GUESS, OTHERS
from report.test_sweep import run, write

from muwa.report.runs import SweptRun
from muwa.report.sweep import write_sweep
from muwa.report.sweep_page import by_setting, cells, shortened
from muwa.types.metric import Metric, NameRate


def table(page, number):
    """(headings, rows of cells) of a table of the page, as text."""
    part = page.split("<table")[number + 1].split("</table>")[0]
    head = [re.sub("<[^>]*>", "", one) for one in re.findall("<th[^>]*>(.*?)</th>", part)]
    body = part.split("<tbody>")[1].split("</tbody>")[0]
    rows = re.findall("<tr>(.*?)</tr>", body, re.S)
    return head, [
        [re.sub("<[^>]*>", "", cell) for cell in re.findall("<td[^>]*>(.*?)</td>", row)] for row in rows
    ]


def test_settings_stand_before_results_and_all_columns_are_folded(tmp_path):
    for number, step in enumerate(("0.123456789", "0.123456001")):
        run(tmp_path, number, [f"layer_search.relative_step={step}", "task.identity=A"], top1=0.0)
    write_sweep(tmp_path)
    page = (tmp_path / "sweep.html").read_text()
    head, rows = table(page, 0)
    assert head == ["run", "status", "names", "layer_search.relative_step", "after forget/top1", "after forget/top5",
                    "change retain/top1", "objective (lower is better)", "layer", "step", "size, ‖Δθ‖ / ‖θ‖"]  # fmt: skip
    assert "First the run and the settings that vary, then how it came out, and the edit." in page
    assert f"folder <code>{'/'.join(tmp_path.parts[-3:])}</code>" in page
    assert [row[3] for row in rows] == ["0.123457", "0.123456"]  # told apart, the whole value on hover
    assert 'title="0.123456789"' in page
    everything, _ = table(page, 1)
    assert {"before forget/top1", "seconds", *head} <= {*everything}
    assert rows[0][4:8] == ["0.0 %", "0.0 %", "-2.0", "0.0000"]
    assert rows[0][-2:] == ["2", "10.0 %"]
    assert page.index('<details class="screen">') < page.index("before forget/top1")


def test_mean_and_deviation_by_setting_by_hand():
    runs = [
        SweptRun({"step": step, "seed": seed}, {"there": 1}) for step in ("1", "2") for seed in ("0", "1")
    ]
    rows = [{"objective": value} for value in (0.1, 0.3, 0.2, 0.2)]
    tables = dict(by_setting(runs, rows, ["objective"], {}))
    assert list(tables) == ["step", "seed"]
    assert [(line["value"].text, line["runs"], line["cells"]) for line in tables["step"]] == [
        ("1", 2, ["0.2 ± 0.14"]),
        ("2", 2, ["0.2 ± 0"]),
    ]
    assert by_setting(runs[::2], rows[::2], ["objective"], {}) == []  # one run for each value: no mean


def test_cells_are_short_and_different_values_look_different():
    layer = "visual.transformer.resblocks.3.attn.in_proj_weight"
    (one,), (other,) = cells([{"layer": layer}, {"layer": "visual.proj"}], ["layer"], {})
    assert (one.text, one.whole, other.text, other.whole) == ("3.attn.in_proj", layer, "visual.proj", "")
    (made,), (none,) = cells([{"layer": layer, "step": 1.0}, {"layer": None, "step": None}], ["layer"], {})
    assert (made.text, none.text, none.whole) == ("3.attn.in_proj", "", "")
    long = "a" * 40
    assert shortened([f"{long}b", f"{long}c"]) == [f"{long}b", f"{long}c"]  # cut, they would look alike
    assert shortened([True, "", None, "nan"]) == ["True", "", "None", "nan"]


def test_who_harms_whom_stands_in_the_page_and_names_are_no_markup(tmp_path):
    """Names that a browser, a spreadsheet or matplotlib could take for something else."""
    odd = ("<b>Ada</b>", "=Bo $^$ \\x")
    for number, name in enumerate(odd):
        run(tmp_path, number, [f"seed={number}"])
        readings = {"forget/top1": FIRST_GUESS, "retain/top1": OTHERS}
        write(tmp_path / str(number), readings, before=(1.0, 0.9), after=(0.0, 0.9))
        path = tmp_path / str(number) / "results.json"
        found = json.loads(path.read_text())
        found["task"]["names"] = [name]
        other = odd[1 - number]
        for when, rate in (("before", 1.0), ("after", 0.5)):
            by = Metric(rate, 8, reading=OTHERS, by_name={other: NameRate(rate, 8)}).record()
            found["metrics"][when]["retain/top1"] = by
        path.write_text(json.dumps(found))
    write_sweep(tmp_path)
    page = (tmp_path / "sweep.html").read_text()
    assert "Who harms whom" in page
    assert (
        "Forgetting =Bo $^$ \\x costs &lt;b&gt;Ada&lt;/b&gt; 50.0 points (100.0 % → 50.0 %, n = 8)." in page
    )
    assert "<b>Ada" not in page
    assert page.count("<svg ") == 2
    assert "'=Bo $^$ \\x" in (tmp_path / "sweep.csv").read_text()
    assert (tmp_path / "harm.csv").is_file()


def test_a_setting_with_many_values_is_folded_and_stands_last(tmp_path):
    for number in range(26):
        run(
            tmp_path,
            number,
            [f"task.identity=N{number // 2}", f"task.limits.forget_pairs={1 + number % 2}"],
            top1=0.0,
        )
    write_sweep(tmp_path)
    page = (tmp_path / "sweep.html").read_text()
    part = page[page.index("<h2>By setting</h2>") :]
    assert part.index('<th scope="col">task.limits.forget_pairs</th>') < part.index(
        "<summary>task.identity: 13 values</summary>"
    )


def test_a_matrix_in_which_no_other_name_lost_is_not_drawn_on_the_page(tmp_path):
    for number, name in enumerate(("Ada Fox", "Bo Hill")):
        run(tmp_path, number, [f"task.identity={name.replace(' ', '_')}"], top1=0.0)
        path = tmp_path / str(number) / "results.json"
        found = json.loads(path.read_text())
        found["task"]["names"] = [name]
        for when in ("before", "after"):
            by = Metric(1.0, 8, reading=OTHERS, by_name={"Cy Dale": NameRate(1.0, 8)}).record()
            found["metrics"][when]["retain/top1"] = by
        path.write_text(json.dumps(found))
    write_sweep(tmp_path)
    page = (tmp_path / "sweep.html").read_text()
    assert "<li>No other name lost accuracy.</li>" in page
    assert page.count("<svg ") == 1  # forgetting against keeping
