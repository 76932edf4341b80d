import os
import subprocess
import sys

import pytest

from maavt.errors import UserError
from maavt.work import atomic, fingerprint, project_root, publish, workspace


@pytest.fixture(autouse=True)
def in_a_project(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert list(path.parent.iterdir()) == []
    with atomic(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_unfinished_work_is_found_again_and_finished_work_is_gone():
    with pytest.raises(KeyboardInterrupt), workspace("stage", {"a": 1}) as folder:
        (folder / "part").write_text("kept")
        raise KeyboardInterrupt
    with workspace("stage", {"a": 1}) as again:
        assert again == folder
        assert (again / "part").read_text() == "kept"
    assert not folder.exists()


def test_other_settings_have_another_folder():
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_other_inputs_have_another_folder(tmp_path):
    (tmp_path / "in").write_text("1")
    first = fingerprint(tmp_path / "in")
    (tmp_path / "in").write_text("2")
    assert fingerprint(tmp_path / "in") != first


def test_the_same_work_is_not_done_twice_at_once(tmp_path):
    hold = "from maavt.work import workspace\nwith workspace('s', 1): print('in', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match=f"process {holder.pid} is already doing this work"), workspace("s", 1):
            pass
        holder.communicate(b"\n")
    with workspace("s", 1):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path):
    hold = "from maavt.work import workspace\nwith workspace('s', 1): print('in', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    holder.kill()
    holder.wait()
    with workspace("s", 1):
        pass


def test_publishing_replaces_what_was_there(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    publish(tmp_path / "new", tmp_path / "old")
    assert os.listdir(tmp_path / "old") == ["new"]


def test_the_project_is_found_from_below(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert project_root() == tmp_path


def test_outside_a_project_the_error_says_so(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").unlink()
    with pytest.raises(UserError, match="no dvc.yaml"):
        project_root()


def test_hidden_leftovers_of_a_kill_are_overwritten(tmp_path):
    (tmp_path / ".a.tmp").write_text("left by a killed run")
    with atomic(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert sorted(os.listdir(tmp_path)) == ["a", "dvc.yaml"]
