"""Hydra reads each file of muwa/conf/ and composes each set of choices once a process: the tests compose a thousand configs.

What is kept is pickled: that gives a copy in a quarter of the time that `copy.deepcopy` takes.
"""

import copy
import functools
import pickle
from pathlib import Path

import omegaconf.base
from hydra._internal import config_loader_impl, config_repository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.object_type import ObjectType

CONF = Path(__file__).parent.parent / "muwa" / "conf"


def once():
    """From here on, for configs that come from muwa/conf/ alone."""
    read_once()
    list_once()
    merge_once()
    omegaconf.base.parse = functools.cache(omegaconf.base.parse)


def read_once():
    """Each config is read and parsed once; a repository that is copied keeps its sources, and with them Hydra's store."""
    repository = config_repository.ConfigRepository
    load, read = repository.load_config, {}

    def load_config(self, config_path):
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or (source.scheme() == "file" and Path(source.path) != CONF):
            return load(self, config_path)
        key = source.path, config_path
        if key not in read:
            read[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(read[key])

    repository.load_config = load_config
    repository.__deepcopy__ = lambda self, memo: copy.copy(self)


def list_once():
    """Which files the same choices take is found once; settings that are given do not change it."""
    create, lists = config_loader_impl.create_defaults_list, {}

    def create_defaults_list(repo, config_name, overrides_list, prepend_hydra, skip_missing):
        whole = {"prepend_hydra": prepend_hydra, "skip_missing": skip_missing}
        if not only_ours(repo):
            return create(repo, config_name, overrides_list, **whole)
        given = Overrides(repo=repo, overrides_list=overrides_list)
        chosen = given.override_choices, given.append_group_defaults, given.deletions
        key = repr((config_name, whole, chosen))
        if key not in lists:
            lists[key] = create(repo, config_name, overrides_list, **whole)
        kept = lists[key]
        return DefaultsList(kept.defaults, kept.defaults_tree, given.config_overrides, kept.overrides)

    config_loader_impl.create_defaults_list = create_defaults_list


def merge_once():
    """The same files are merged once."""
    loader = config_loader_impl.ConfigLoaderImpl
    merge, merged = loader._compose_config_from_defaults_list, {}

    def compose_config(self, defaults, repo):
        if not only_ours(repo):
            return merge(self, defaults, repo)
        key = repr(defaults)
        if key not in merged:
            merged[key] = pickle.dumps(merge(self, defaults, repo))
        return pickle.loads(merged[key])

    loader._compose_config_from_defaults_list = compose_config


def only_ours(repo):
    """Whether no other folder of configs is searched."""
    return all(Path(one.path) == CONF for one in repo.get_sources() if one.scheme() == "file")
