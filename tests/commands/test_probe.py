"""`maavt probe`: one verdict per file, in order, whatever the files are."""

import json

import pytest

from maavt import errors
from maavt.commands import probe
from tests.conftest import ROOT
from tests.media.test_decode import CLIPS, VERDICTS, grey, tone, write_clip
from tests.sources.common import write_media


def run(*arguments) -> int:
    return errors.run(lambda: probe.main([str(argument) for argument in arguments]))


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_real_clips_get_their_expected_verdicts_in_order(capsys):
    if not CLIPS.exists():
        pytest.skip("the real clips are not here")
    paths = [CLIPS / name for name in VERDICTS]
    assert run(*paths, "--workers", 2) == 1
    expected = []
    for path, verdict in zip(paths, VERDICTS.values(), strict=True):
        if isinstance(verdict, str):
            expected.append({"file": str(path), "ok": False, "frames": 0, "audio_seconds": 0.0, "reason": verdict})
        else:
            expected.append({"file": str(path), "ok": True, "frames": round(verdict[0]),
                             "audio_seconds": pytest.approx(verdict[1], abs=0.01), "reason": ""})
    assert lines(capsys) == expected


def test_file_is_judged_by_the_length_that_it_has(tmp_path, capsys):
    lengths = {0.6: 1, 1.2: 1, 1.8: 2, 4.6: 5, 12.0: 10}
    paths = [write_clip(tmp_path / f"{seconds}.mkv", [grey(0)] * round(seconds * 10)) for seconds in lengths]
    paths.append(write_clip(tmp_path / "blink.mkv", [grey(0)] * 4, tone(1)[None]))
    paths.append(write_clip(tmp_path / "hush.mkv", [grey(0)] * 60, tone(1)[None]))
    assert run(*paths) == 1
    *whole, blink, hush = lines(capsys)
    assert [verdict["frames"] for verdict in whole] == list(lengths.values())
    assert [verdict["audio_seconds"] for verdict in whole] == [0.6, 1.2, 1.8, 4.6, 10.0]
    assert (blink["ok"], blink["reason"]) == (False, "too short") and hush["ok"]
    assert blink["detail"] == "0.40 s of picture, 1.00 s of sound; expected 0.5 s at least of each"


def test_files_are_judged_by_the_recipe_of_a_data_set_where_one_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = write_clip(tmp_path / "a.mkv", [grey(0)] * 30)
    assert run(path) == 0 and run(path, "--dataset", "synth") == 1
    assert lines(capsys)[1]["detail"].endswith("expected 5 s at least")


def test_what_is_absent_is_named_where_such_files_can_be_used(tmp_path, capsys):
    paths = [write_media(tmp_path / "a.mp3", seconds=3, picture=None, sound="mp3"),
             write_media(tmp_path / "b.mp4", seconds=3, sound=None), write_media(tmp_path / "c.mp4", seconds=3)]
    assert run(*paths) == 1 and run(*paths, "--missing", "keep") == 0
    *rejected, whole, song, film, same = lines(capsys)
    assert [verdict["reason"] for verdict in rejected] == ["no video stream", "no audio stream"]
    assert (song["absent"], song["frames"], song["audio_seconds"]) == ("picture", 0, pytest.approx(3, abs=0.1))
    assert (film["absent"], film["frames"], film["audio_seconds"]) == ("sound", 3, 0)
    assert same == whole and "absent" not in whole


def test_files_that_are_none_are_verdicts_too(tmp_path, capsys):
    (tmp_path / "text.mp4").write_text("no film")
    assert run(tmp_path / "none.mp4", tmp_path, tmp_path / "text.mp4") == 1
    assert [verdict["reason"] for verdict in lines(capsys)] == ["missing file", "not media", "not media"]


@pytest.mark.parametrize("arguments", [[], ["a.mp4", "--workers", "0"], ["a.mp4", "--workers", "x"],
                                       ["a.mp4", "--time-limit", "-1"], ["a.mp4", "--time-limit", "nan"]])
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2


def test_bad_number_of_workers_in_the_environment_is_told(monkeypatch, capsys):
    monkeypatch.setenv("MAAVT_WORKERS", "many")
    assert run("a.mp4") == 1
    assert "MAAVT_WORKERS='many'" in capsys.readouterr().err


def test_an_empty_name_is_wrong_usage_and_not_the_folder_one_is_in():
    with pytest.raises(SystemExit) as caught:
        run("")
    assert caught.value.code == 2
