import yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA

from flows.lock import drop_damaged

LOCK = """schema: '2.0'
stages:
  shard:
    cmd: python -m maavt.cli shard
    deps:
    - path: data/raw/synth
      hash: md5
      md5: e6d8a5c0.dir
    outs:
    - path: data/shards/synth
      hash: md5
      md5: a1.dir
"""


def test_a_lock_file_cut_anywhere_is_removed_or_can_be_read_by_dvc(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.lock.WRITING", 0)
    lock = tmp_path / "dvc.lock"
    for length in range(len(LOCK)):
        lock.write_text(LOCK[:length])
        drop_damaged(tmp_path)
        if lock.exists():
            COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(lock.read_text()))


def test_a_whole_lock_file_stays_and_a_missing_one_is_no_error(tmp_path, capsys):
    drop_damaged(tmp_path)
    (tmp_path / "dvc.lock").write_text(LOCK)
    drop_damaged(tmp_path)
    assert (tmp_path / "dvc.lock").read_text() == LOCK
    assert capsys.readouterr().err == ""


def test_the_list_of_paths_in_use_that_a_kill_cut_short_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.lock.WRITING", 0)
    used = tmp_path / ".dvc" / "tmp" / "rwlock"
    used.parent.mkdir(parents=True)
    for text, stays in (('{"read": {}, "write": {}}', True), ('{"read": {"/a": [{"pi', False), ("", False)):
        used.write_text(text)
        drop_damaged(tmp_path)
        assert used.exists() == stays
