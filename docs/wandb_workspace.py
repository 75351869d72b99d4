"""Makes the dashboard of muwa in W&B: a saved workspace with before and after, the search, layers, answers.

    pip install wandb-workspaces
    wandb login
    python docs/wandb_workspace.py ENTITY --project muwa

It prints the address of the workspace. docs/wandb.md tells what stands in it.
"""

import argparse

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

# The metrics of each family; a run has some of them, and W&B leaves out the others.
FORGOTTEN = ("forget/top1", "forget/top5", "forget/ua", "forget/answered")
KEPT = ("retain/top1", "utility/top1", "retain/ira", "retain/cra", "retain/answered", "utility/answered")
TABLES = ("metrics", "search", "scores", "gradients", "answers")
FIGURES = ("gains", "pareto", "trace", "metrics", "similarity")


def bars(title: str, metrics: tuple[str, ...]) -> wr.BarPlot:
    """A bar for each metric before and after."""
    both = [f"{when}/{one}" for one in metrics for when in ("before", "after")]
    return wr.BarPlot(title=title, metrics=both)


def workspace(entity: str, project: str) -> ws.Workspace:
    """The workspace, not yet saved."""
    outcome = [
        bars("Forgotten: lower is better (ua: higher)", FORGOTTEN),
        bars("Kept: higher is better", KEPT),
        wr.BarPlot(title="Change of what is kept", metrics=[f"change/{one}" for one in KEPT]),
        wr.ScatterPlot(
            title="What was forgotten and what was kept",
            x=wr.SummaryMetric("after/forget/top1"),
            y=wr.SummaryMetric("after/retain/top1"),
        ),
        wr.ScatterPlot(
            title="Size of the edit and objective",
            x=wr.SummaryMetric("edit/relative_norm"),
            y=wr.SummaryMetric("objective"),
        ),
    ]
    trace = [
        wr.LinePlot(title=title, x="search/evaluation", y=list(y))
        for title, y in (
            ("Forgotten and kept, by evaluation", ("search/forgotten", "search/kept")),
            ("Size of the step", ("search/relative_norm",)),
        )
    ]
    trace.append(wr.LinePlot(title="Loss of a fine-tuning method", x="training/step", y=["training/loss"]))
    figures = wr.MediaBrowser(title="Figures", media_keys=[f"figures/{one}" for one in FIGURES])
    tables = [wr.WeavePanelSummaryTable(table_name=one) for one in TABLES]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="muwa",
        sections=[
            ws.Section(name="Outcome", panels=outcome, is_open=True),
            ws.Section(name="Search", panels=trace, is_open=True),
            ws.Section(name="Tables", panels=tables, is_open=True),
            ws.Section(name="Figures", panels=[figures]),
        ],
        settings=ws.WorkspaceSettings(x_axis="Step", smoothing_type="none", remove_legends_from_panels=False),
        runset_settings=ws.RunsetSettings(
            order=[ws.Ordering(ws.Summary("objective"), ascending=True)],
            pinned_columns=[
                "summary:verdict",
                "summary:objective",
                "summary:edit/layer",
                "summary:after/forget/top1",
            ],
        ),
    )


def main() -> None:
    """Save the workspace and print its address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("entity", help="user or team in W&B")
    parser.add_argument("--project", default="muwa", help="logger.wandb.project of the runs (muwa)")
    given = parser.parse_args()
    print(workspace(given.entity, given.project).save().url)


if __name__ == "__main__":
    main()
