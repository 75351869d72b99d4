"""Offline, the hub's cache alone is read, at once, and the message says so."""

import socket
import time
import urllib.request

import pytest
from huggingface_hub import constants

from muwa.models import hub_access
from muwa.models.clip import open_clip, transformers
from muwa.models.hub_access import cache_if_out_of_reach, out_of_reach


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No answer is remembered from another test, no proxy is set, and the hub's cache is empty."""
    out_of_reach.cache_clear()
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    yield
    out_of_reach.cache_clear()


@pytest.fixture
def offline(monkeypatch):
    """A machine on which no name resolves; the list has the hosts that were asked for."""
    asked = []

    def refuse(address, timeout=None):
        asked.append(address)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refuse)
    return asked


def test_a_host_is_tried_once_a_process_and_the_cache_alone_is_read(offline):
    for _ in range(2):
        with cache_if_out_of_reach(True):
            assert constants.is_offline_mode()
        assert not constants.is_offline_mode()
    assert out_of_reach() == "huggingface.co cannot be reached from here: Name or service not known"
    assert offline == [("huggingface.co", 443)]


def test_nothing_is_tried_for_a_local_folder_or_behind_a_proxy(offline, monkeypatch):
    with cache_if_out_of_reach(False):
        assert not constants.is_offline_mode()
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy:3128"})
    with cache_if_out_of_reach(True):
        assert not constants.is_offline_mode()
    assert offline == []


def test_a_mirror_that_answers_is_asked(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}/hub")
        with cache_if_out_of_reach(True):
            assert not constants.is_offline_mode()
    assert out_of_reach() == ""


def test_what_the_user_set_stays_and_is_said(monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(KeyError), cache_if_out_of_reach(False):
        assert constants.is_offline_mode()
        raise KeyError
    assert constants.HF_HUB_OFFLINE
    assert out_of_reach() == "HF_HUB_OFFLINE is set, so the hub is not asked"
    assert offline == []


@pytest.mark.parametrize("load", [
    lambda: transformers.load("nobody/no-model", device="cpu"),
    lambda: open_clip.load("ViT-B-32", "laion400m_e32", device="cpu", seed=0),
], ids=["transformers", "open_clip"])  # fmt: skip
def test_a_model_that_is_not_there_is_refused_at_once_with_a_whole_message(load, offline):
    started = time.monotonic()
    with pytest.raises(
        FileNotFoundError,
        match=r"fetched \(huggingface.co cannot be reached from here: Name or service not known\)",
    ):
        load()
    assert time.monotonic() - started < 20  # with retries it took a minute


def test_patience_is_short():
    assert hub_access.PATIENCE <= 5
