"""Settings of one run alone: told where they are wrong, and gone afterwards, whatever becomes of the run."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.settings import changed, changed_text, check_free, check_project, experiment_name, put_back
from maavt.errors import UserError
from tests.conftest import GIT, ROOT, as_repository, tiny_settings


@pytest.fixture
def project(tmp_path) -> Path:
    """A git repository with params.yaml, dvc.lock and a metric, as after a run."""
    tmp_path = tmp_path / "project"
    for name, text in (("params.yaml", "tokens: 5   # prompts\nmodels: [maavt]\n"), ("dvc.lock", "before"),
                       ("dvc.yaml", "stages: {}"), ("data/eval/maavt/metrics.json", "{}"), (".gitignore", "/.dvc\n")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    return as_repository(tmp_path)


def work(project: Path) -> None:
    """What a run leaves behind."""
    (project / "dvc.lock").write_text("after")
    for model in ("maavt", "lavish"):
        (project / "data/eval" / model).mkdir(exist_ok=True)
        (project / "data/eval" / model / "metrics.json").write_text('{"accuracy": 1}')


def status(project: Path) -> str:
    return subprocess.run(["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True).stdout


def test_the_workspace_is_as_before_and_comments_stay(project):
    with changed(project, ["tokens=10", "models=[maavt, lavish]"]):
        text = (project / "params.yaml").read_text()
        assert "# prompts" in text and yaml.safe_load(text) == {"tokens": 10, "models": ["maavt", "lavish"]}
        work(project)
    assert status(project) == "" and not (project / ".dvc/tmp/before").exists()


def test_what_a_killed_run_left_is_put_back_by_the_next(project):
    script = f"""
import os, signal
from pathlib import Path
from flows.settings import changed
from tests.flows.test_settings import work
with changed(Path({str(project)!r}), ["tokens=10"]):
    work(Path({str(project)!r}))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL and status(project) != ""
    with changed(project, []):
        assert status(project) == ""
    assert not put_back(project)


def test_a_file_that_somebody_edits_meanwhile_stays(project, capsys):
    with changed(project, ["tokens=10"]):
        (project / "params.yaml").write_text("tokens: 6\n")
    assert (project / "params.yaml").read_text() == "tokens: 6\n"
    assert "was edited while a run had settings of its own" in capsys.readouterr().err


@pytest.mark.parametrize("wrong, told", [
    ("tokenz=1", "tokenz=1: params.yaml has no tokenz; is tokens meant?"),
    ("tokens", "'tokens' is no setting; expected KEY=VALUE"),
    ("tokens.a=1", "tokens.a=1: params.yaml has no tokens.a; expected one of its keys"),
    ("models=[maavt", "the value is not YAML"),
])
def test_what_is_no_setting_is_told(project, wrong, told):
    with pytest.raises(UserError, match=told.replace("?", r"\?").replace("[", r"\[")):
        changed_text(project, [wrong])


def test_all_of_them_are_told_at_once(project):
    with pytest.raises(UserError, match=r"(?s)has no tokenz.*\n  maavt.lsb=1: params.yaml has no"):
        changed_text(project, ["tokenz=1", "tokens=2", "maavt.lsb=1"])


@pytest.mark.parametrize("wrong, told", [
    (["tokens=many"], "tokens: 'many'; expected integer"),
    (["models=maavt"], r"models: 'maavt'; expected a list, such as \[maavt\]"),
    (["models=[]"], r"models: \[\]; expected at least 1"),
    (["dataset=foo"], "dataset: 'foo'; expected 'synth', 'ave'"),
    (["weights=foo"], "weights: no file .*foo; expected packaged, timm, random"),
    (["seed=-1", "tokens=-1"], "2 mistakes in params.yaml and seed=-1"),
])
def test_wrong_values_are_told_in_our_words(tmp_path, wrong, told):
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny_settings()))
    with pytest.raises(UserError, match=told):
        changed_text(tmp_path, wrong)


def test_an_experiment_is_called_by_its_settings():
    assert experiment_name(["tokens=10", "maavt.lsa=false", "models=[a,b]"]) == "tokens-10-maavt-lsa-false-models-a-b"
    long, other = (experiment_name(["folder.root=/data/" + "deep/" * 60, f"seed={seed}"]) for seed in (0, 1))
    assert long != other and len(f"compare-{long}.log") < 200


def test_a_password_is_in_no_name_of_an_experiment():
    name, other = (experiment_name([f"ave.url=https://ann:planted@host/a?token={key}"]) for key in ("planted", "2"))
    assert "planted" not in name and "host" in name and name != other


def test_settings_that_differ_in_a_sign_alone_are_two_experiments():
    for one, other in (("seed=1", "seed=-1"), ("folder.root=/a/b", "folder.root=a/b"), ("x=1e3", "x=1e-3"),
                       ("x=.5", "x=5"), ("x=my.clips", "x=my_clips"), ("a=1+x=-1", "a=1+x=1")):
        assert experiment_name([one]) != experiment_name([other])


def test_what_an_option_tells_is_no_setting():
    check_free(["tokens=2+maavt.lsa=false", "seeds=1"], seed="--seeds")
    with pytest.raises(UserError, match=r"tokens=2\+seed=3: seed differs from run to run here; expected --seeds"):
        check_free(["tokens=2+seed=3"], seed="--seeds")


def git(project: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=project, check=True, capture_output=True, text=True,
                          env=os.environ | GIT).stdout


def leave_behind(project: Path) -> None:
    """What a killed run leaves: its settings and results, and what was there before."""
    with changed(project, ["tokens=10"]):
        work(project)
        shutil.copytree(project, project.with_name("killed"))
    shutil.rmtree(project)
    project.with_name("killed").rename(project)


def test_what_a_killed_run_kept_does_not_overwrite_another_revision(project, capsys):
    git(project, "checkout", "-qb", "other")
    for name, text in (("params.yaml", "tokens: 7\n"), ("dvc.lock", "other"), ("data/eval/maavt/metrics.json", "[]"),
                       ("data/eval/lavish/metrics.json", "[]")):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    git(project, "add", ".")
    git(project, "commit", "-qm", "other")
    git(project, "checkout", "-q", "-")
    leave_behind(project)
    git(project, "checkout", "-qf", "other")
    assert put_back(project) and status(project) == "" and (project / "dvc.lock").read_text() == "other"
    assert "stays as it is: " in (told := capsys.readouterr().err) and "params.yaml" in told and "dvc.lock" in told
    assert not put_back(project)


def test_what_a_killed_run_changed_is_put_back_where_it_was_carried_to_a_revision_with_the_same_files(project, capsys):
    git(project, "branch", "other")
    leave_behind(project)
    git(project, "checkout", "-q", "other")
    git(project, "commit", "-q", "--allow-empty", "-m", "another revision")
    assert status(project) != "" and put_back(project) and status(project) == "" and capsys.readouterr().err == ""


def test_what_a_killed_run_changed_and_somebody_committed_stays(project):
    leave_behind(project)
    git(project, "add", ".")
    git(project, "commit", "-qm", "wanted")
    assert put_back(project) and status(project) == "" and "tokens: 10" in (project / "params.yaml").read_text()


@pytest.mark.parametrize("command", ["merge", "rebase", "cherry-pick", "stash"])
def test_what_dvc_could_not_save_in_the_end_is_told_before_anything_runs(project, command):
    lock = project / "dvc.lock"
    git(project, "checkout", "-qb", "other")
    lock.write_text("other")
    git(project, *(["stash", "-q"] if command == "stash" else ["commit", "-qam", "other"]))
    git(project, "checkout", "-q", "-")
    lock.write_text("this")
    git(project, "commit", "-qam", "this")
    subprocess.run(["git", command, "pop" if command == "stash" else "other"], cwd=project, capture_output=True,
                   env=os.environ | GIT)
    before = status(project)
    assert before == "UU dvc.lock\n"
    told = "dvc.lock: conflicts" if command == "stash" else f"a {command} is not finished"
    with pytest.raises(UserError, match=told):
        changed(project, ["tokens=10"]).__enter__()
    assert status(project) == before
    with changed(project, []):  # a run without settings is no experiment
        assert status(project) == before


def test_git_is_quoted_where_it_cannot_be_used(project, monkeypatch):
    (project / ".git").rename(project / "hidden")
    with pytest.raises(UserError, match="not a git repository.*git init && git add . && git commit"):
        check_project(project)
    git(project, "init", "-q")
    with pytest.raises(UserError, match="git init && git add . && git commit"):
        check_project(project)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # as in a container or on a mount
    with pytest.raises(UserError, match="dubious ownership.*git config --global --add safe.directory"):
        check_project(project)


@pytest.mark.parametrize("module", ["check", "exp"])
def test_a_project_of_another_user_is_told_before_anything_runs(project, module):
    before = {path.relative_to(project) for path in project.rglob("*")}
    done = subprocess.run([sys.executable, "-m", f"flows.{module}", *(["tokens=10"] if module == "exp" else [])],
                          cwd=project, capture_output=True, text=True, env=os.environ | {
                              "GIT_TEST_ASSUME_DIFFERENT_OWNER": "1", "PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.returncode == 1 and "dubious ownership" in done.stderr and done.stderr.count("\n") == 1
    assert {path.relative_to(project) for path in project.rglob("*")} == before
