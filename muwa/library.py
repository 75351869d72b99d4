"""muwa from Python: the same parts as the command line, with the defaults of muwa/conf/.

Each function takes the settings of its config group as keywords. For example, `slug(model, task, run,
batch_size=16)` does what `method.batch_size=16` does on the command line.
"""

from __future__ import annotations

from typing import Any

from muwa import config
from muwa.data.dataset import Dataset
from muwa.eval.measure import check_measures
from muwa.eval.measure import evaluate as measured
from muwa.layer_search.base import LayerSearch
from muwa.methods.base import make_edit
from muwa.models.base import Editable
from muwa.models.clip.model import Clip
from muwa.run import Run
from muwa.types.data import Task
from muwa.types.edit import Edit
from muwa.types.metric import Metric


def load_miniature(root: str, **settings: Any) -> Dataset:
    """The miniature's data set (`dataset=miniature`). It is written to `root` if it is not there yet."""
    dataset: Dataset = config.part("dataset=miniature", f"dataset.root={root}", **settings)()
    dataset.prepare(lambda _: None)
    return dataset


def load_clip(*weights: str | None, **settings: Any) -> Clip:
    """An open_clip model (`model=clip`).

    Args:
        weights: The name of an architecture, then a pretrained tag, a checkpoint file, or None for random
            weights: `load_clip("ViT-B-32", "laion400m_e32")`. Without arguments, the miniature.
    """
    return config.part("model=clip", **dict(zip(("name", "pretrained"), weights, strict=False)), **settings)()


def load_clip_hf(path: str, **settings: Any) -> Clip:
    """A transformers `CLIPModel` (`model=clip_hf`): a folder or a hub id."""
    return config.part("model=clip_hf", path=path, **settings)()


def celeba(dataset: Dataset, **settings: Any) -> Task:
    """The task to forget people (`task=celeba`). Give `identity`: one name or a list of names."""
    return config.part("task=celeba", **settings)(dataset)


def objects(dataset: Dataset, **settings: Any) -> Task:
    """The task to forget objects (`task=object`). Give `object`: one class or a list of classes."""
    return config.part("task=object", **settings)(dataset)


def unlearn(model: Editable, task: Task, run: Run, method: str = "slug_whitened", **settings: Any) -> Edit:
    """The edit of any method (`method=...`). Its settings are checked before anything is computed."""
    return make_edit(config.part(f"method={method}", **settings), model, task, run)


def slug(model: Editable, task: Task, run: Run, **settings: Any) -> Edit:
    """The edit of SLUG as in the paper (`method=slug`): gradients, scores, layer search, edit."""
    return unlearn(model, task, run, "slug", **settings)


def evaluate(
    model: Editable, task: Task, run: Run, metrics: str = "forget,retain,neighbours,utility,similarity"
) -> dict[str, Metric]:
    """Measure one model (`eval=[...]`): metric name -> metric.

    Args:
        metrics: Names of files in muwa/conf/eval/, joined by commas.
    """
    measures = config.part(f"eval=[{metrics}]")
    check_measures(model, task, measures)
    return measured(model.observe(run), task, measures)


def pareto_bisect(**settings: Any) -> LayerSearch:
    """SLUG's layer search (`layer_search=pareto_bisect`), for `slug(..., layer_search=...)`."""
    return config.part("layer_search=pareto_bisect", **settings)


def grid(**settings: Any) -> LayerSearch:
    """A search over given layers and steps (`layer_search=grid`)."""
    return config.part("layer_search=grid", **settings)


def fixed(**settings: Any) -> LayerSearch:
    """No search: one given layer and step (`layer_search=fixed`)."""
    return config.part("layer_search=fixed", **settings)
