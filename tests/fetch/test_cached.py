import json

import yaml

from maavt.fetch.cached import restore


def write_cache(root, files: dict[str, bytes], place=".dvc/cache"):
    """A project whose last run made data/raw/x of these files."""
    objects = {"ab" + "0" * 30: json.dumps([{"md5": f"{n:032d}", "relpath": name} for n, name in enumerate(files)])}
    objects = {"ab" + "0" * 30 + ".dir": objects.popitem()[1].encode()}
    objects |= {f"{n:032d}": data for n, data in enumerate(files.values())}
    for name, data in objects.items():
        path = root / place / "files" / "md5" / name[:2] / name[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    lock = {"stages": {"download": {"outs": [{"path": "data/raw/x", "md5": "ab" + "0" * 30 + ".dir"}]}}}
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))


def test_what_the_cache_has_of_the_last_run_is_linked(tmp_path):
    write_cache(tmp_path, {"a/1.mp4": b"one", "a/2.mp4": b"two", "clips.csv": b"key"})
    folder = tmp_path / "raw"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "2.mp4").write_bytes(b"newer")
    restore(tmp_path, "data/raw/x", folder, {"a/1.mp4", "a/2.mp4", "a/3.mp4"})
    assert sorted(path.name for path in (folder / "a").iterdir()) == ["1.mp4", "2.mp4"]
    assert (folder / "a" / "1.mp4").read_bytes() == b"one" and (folder / "a" / "1.mp4").stat().st_nlink == 2
    assert (folder / "a" / "2.mp4").read_bytes() == b"newer"


def test_a_cache_elsewhere_is_found_through_dvcs_settings(tmp_path):
    write_cache(tmp_path, {"1.mp4": b"one"}, place="elsewhere")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n[cache]\n    dir = ../elsewhere\n")
    restore(tmp_path, "data/raw/x", tmp_path / "raw", {"1.mp4"})
    assert (tmp_path / "raw" / "1.mp4").read_bytes() == b"one"


def test_without_a_cache_nothing_is_restored(tmp_path):
    for lock in (None, "stages: {}", "nonsense: [", "stages: {download: {outs: [{path: data/raw/x, md5: 00.dir}]}}"):
        if lock is not None:
            (tmp_path / "dvc.lock").write_text(lock)
        restore(tmp_path, "data/raw/x", tmp_path / "raw", {"1.mp4"})
    assert not (tmp_path / "raw").exists()
