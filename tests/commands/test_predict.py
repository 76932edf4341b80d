import json
import subprocess
import sys

import pytest


def maavt(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "maavt.cli", *map(str, arguments)], cwd=cwd, capture_output=True,
                          text=True)


def test_a_test_clip_gets_the_predictions_of_the_evaluation(project):
    import csv

    done = maavt("predict", project / "data/raw/synth/test/test-00001.mp4", cwd=project)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)["pairs"]
    with open(project / "data/eval/maavt/predictions.csv", newline="") as file:
        expected = [row for row in csv.DictReader(file) if row["key"] == "test-00001"]
    assert [pair["second"] for pair in said] == list(range(10))
    # the stored frames went through JPEG once more
    assert sum(a["class"] == b["predicted"] for a, b in zip(said, expected, strict=True)) >= 8
    assert [pair["probability"] for pair in said] == pytest.approx([float(r["probability"]) for r in expected], abs=0.2)


def test_a_file_that_is_no_clip_has_its_reason_and_exit_code_1(project):
    (project / "a.mp4").write_text("text")
    done = maavt("predict", "a.mp4", cwd=project)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"file": "a.mp4", "reason": "not media"}
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["predict"], ["transcribe", "a.mp4"], ["predict", "a", "--model", "x"]])
def test_wrong_usage_has_exit_code_2(arguments, tmp_path):
    assert maavt(*arguments, cwd=tmp_path).returncode == 2
