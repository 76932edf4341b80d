import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from maavt.errors import UserError
from maavt.work import atomic, fingerprint, project_root, publish, workspace, write_table


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


def publish_and_die(project: Path) -> Path:
    """A stage that was killed after it published a folder, which DVC then removed; its workspace."""
    code = """if True:
        import os, signal
        from pathlib import Path
        from maavt.work import publish, workspace
        with workspace("s", 1) as folder:
            (folder / "out" / "deep").mkdir(parents=True)
            (folder / "out" / "deep" / "a").write_text("a")
            (folder / "out" / "b").write_text("b")
            publish(folder / "out", Path("data/out"))
            os.kill(os.getpid(), signal.SIGKILL)
        """
    assert subprocess.run([sys.executable, "-c", code], cwd=project).returncode == -9
    assert (project / "data/out/deep/a").read_text() == "a"
    (folder,) = project.glob(".work/s/*/")
    return folder


def test_what_a_killed_stage_published_is_there_again_though_dvc_removes_it(tmp_path):
    folder = publish_and_die(tmp_path)
    before = (folder / "out/b").stat()
    assert before.st_ino == (tmp_path / "data/out/b").stat().st_ino  # no second copy
    shutil.rmtree(tmp_path / "data")
    with workspace("s", 1) as again:
        assert again == folder and (folder / "out/deep/a").read_text() == "a"
        assert (folder / "out/b").stat().st_ino == before.st_ino
        publish(folder / "out", tmp_path / "data/out")
    assert (tmp_path / "data/out/b").read_text() == "b" and sorted(os.listdir(tmp_path / "data")) == ["out"]
    assert not list((tmp_path / ".work/s").glob("*/"))


def test_what_changed_since_it_was_published_is_made_again(tmp_path):
    folder = publish_and_die(tmp_path)
    with open(tmp_path / "data/out/b", "a") as file:  # in place, under the other name
        file.write("!")
    with workspace("s", 1):
        assert (folder / "out/deep/a").exists() and not (folder / "out/b").exists()


def test_a_disk_without_second_names_has_what_is_published_moved(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with workspace("s", 1) as folder:
        (folder / "out").mkdir()
        (folder / "out" / "a").write_text("a")
        publish(folder / "out", tmp_path / "data/out")
        assert not (folder / "out").exists()
    assert (tmp_path / "data/out/a").read_text() == "a"


def test_work_that_a_kill_left_half_removed_is_no_work_to_go_on_from(tmp_path):
    with workspace("s", 1) as folder:
        pass
    left = folder.with_suffix(".done")
    left.mkdir()
    (left / "half").touch()
    with workspace("s", 1):
        assert not left.exists() and os.listdir(folder) == []


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


@pytest.mark.parametrize("size", [4_000_000, 900_000])  # bytes: of which not much, or nearly all finds room
def test_a_disk_that_is_too_small_for_safetensors_is_an_error_of_the_disk(tmp_path, size):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no small disk can be had here")
    try:
        with pytest.raises(OSError, match="No space left on device.*weights"), atomic(tmp_path / "weights") as path:
            save_file({"weight": np.zeros(size, np.uint8)}, path)
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_other_errors_of_the_disk_keep_their_reason(tmp_path):
    with pytest.raises(PermissionError), atomic(tmp_path / "weights"):
        raise RuntimeError("I/O error: Permission denied (os error 13)")
    with pytest.raises(RuntimeError, match="^no matrix$"), atomic(tmp_path / "weights"):
        raise RuntimeError("no matrix")


TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\r\n\t\0\x0b\x1c\x85\u2028\",;"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"a\r": TEXT, "b": TEXT})))
def test_a_table_is_read_as_it_was_written_whatever_its_fields_hold(tmp_path, rows):
    write_table(tmp_path / "table.csv", ["a\r", "b"], rows)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows


def test_the_lines_of_a_table_end_with_a_newline_alone(tmp_path):
    write_table(tmp_path / "table.csv", ["a", "b"], [{"a": 1, "b": "x\r"}, {"a": "", "b": "\r\n"}])
    assert (tmp_path / "table.csv").read_bytes() == b'a,b\n1,"x\r"\n,"\r\n"\n'
