"""What a run may be given through the Prefect API, and what it may not."""

import inspect
from types import SimpleNamespace

import prefect.runtime
import pytest

from flows import trusted
from flows.ablate import ablate
from flows.compare import compare
from flows.ingest import ingest
from flows.pipeline import pipeline
from maavt.errors import UsageError


@pytest.fixture
def through_api(monkeypatch):
    """This process runs a run of a deployment."""
    monkeypatch.setattr(prefect.runtime, "deployment", SimpleNamespace(id="a deployment"))
    monkeypatch.delenv("MAAVT_SET", raising=False)


@pytest.mark.parametrize("flow", [pipeline, ingest, ablate, compare])
def test_no_flow_has_a_parameter_for_a_command_or_a_folder(flow):
    assert not {"notify", "project"} & {*inspect.signature(flow.fn).parameters}


@pytest.mark.parametrize("setting", ["tokens=10", "train.learning_rate=1e-3", "models=[maavt, lavish]", "seed=-1",
                                     "image_size={ave: 98, synth: 56}", "maavt.lsa=true,false+tokens=2",
                                     "weights=timm"])
def test_numbers_and_words_are_taken(through_api, setting):
    trusted.check_settings([setting])


@pytest.mark.parametrize("setting", [
    "folder.root=/etc", "folder.root=..", "folder.root=~", "ave.url=http://127.0.0.1/", "vggsound.hub=//elsewhere",
    "backbone=hf-hub:a_patch16", "weights=a/b.safetensors", "vggsound.archives=*", "models=[a;touch b]", "tokens=$(id)",
    "tokens=`id`", "tokens=1\nweights: 2", "tokens=&a [1]", "tokens=!!python/name:os"])
def test_paths_urls_patterns_and_shells_are_refused(through_api, setting):
    with pytest.raises(UsageError, match="set a path, URL or pattern in params.yaml"):
        trusted.check_settings([setting])


def test_what_the_process_that_serves_was_given_is_taken(through_api, monkeypatch, tmp_path):
    for name in ("MAAVT_PROJECT", "MAAVT_CATCH_UP"):
        monkeypatch.setenv(name, "")
    trusted.decide(tmp_path, settings=["folder.root=/data"])
    trusted.check_settings(["folder.root=/data"])
    with pytest.raises(UsageError):
        trusted.check_settings(["folder.root=/data/other"])


def test_a_run_of_ones_own_takes_all(monkeypatch):
    monkeypatch.setattr(prefect.runtime, "deployment", SimpleNamespace(id=None))
    trusted.check_settings(["folder.root=/data"])
