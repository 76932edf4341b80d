"""A model of the project that is not there."""

import json
import os

import pytest
import yaml

from maavt.errors import UserError
from maavt.recordings.trained import folder_of


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project in which a model was made, and then taken away."""
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    objects = tmp_path / ".dvc/cache/files/md5/ab"
    objects.mkdir(parents=True)
    (objects / "c.dir").write_text(json.dumps([{"relpath": "config.json", "md5": "de"}]))
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    outs = [{"path": "data/models/maavt", "md5": "abc.dir"}]
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"train@maavt": {"outs": outs}}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_in_the_cache_alone_is_told_with_what_brings_it_back(root):
    with pytest.raises(UserError, match="dvc checkout data/models/maavt brings it back"):
        folder_of("maavt")
    assert folder_of("lavish") == root / "data/models/lavish"  # which was never made


def test_a_run_that_makes_the_model_anew_is_named(root):
    writing = {str(root / "data/models/maavt"): {"pid": os.getpid(), "cmd": "dvc repro"}}
    (root / ".dvc/tmp/rwlock").write_text(json.dumps({"read": {}, "write": writing}))
    with pytest.raises(UserError, match=rf"is at work \(process {os.getpid()}\); wait until it ends"):
        folder_of("maavt")
    writing[str(root / "data/models/maavt")]["pid"] = 2**22 + 1  # of a run that was killed
    (root / ".dvc/tmp/rwlock").write_text(json.dumps({"read": {}, "write": writing}))
    with pytest.raises(UserError, match="dvc checkout"):
        folder_of("maavt")


def test_what_a_killed_experiment_left_is_told(root):
    (root / ".dvc/tmp/before").mkdir()
    with pytest.raises(UserError, match="was killed.*make repro"):
        folder_of("maavt")


def test_a_model_that_is_there_is_taken_during_a_run(root):
    (root / ".dvc/tmp/before").mkdir()
    (root / "data/models/maavt").mkdir(parents=True)
    (root / "data/models/maavt/config.json").touch()
    assert folder_of("maavt") == root / "data/models/maavt"
