"""`maavt export`: a folder that needs neither the project nor its data, and answers as the model does."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from maavt import errors, load
from maavt.commands import export
from maavt.recordings import portable

CLIP = "data/raw/synth/test/test-00001.mp4"
ALONE = "import json, maavt; print(json.dumps(maavt.load('model', device='cpu').predict('clip.mp4')))"


def run(*arguments) -> int:
    return errors.run(lambda: export.main([str(argument) for argument in arguments]))


@pytest.mark.long
def test_the_exported_folder_answers_the_same_outside_any_project(project, tmp_path, capsys):
    expected = load("maavt", device="cpu").predict(CLIP)["windows"]
    assert run("exported") == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree("exported", elsewhere / "model")
    shutil.copy(CLIP, elsewhere / "clip.mp4")
    shutil.move("data", "gone")
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)["windows"]
    assert [window["class"] for window in said] == [window["class"] for window in expected]
    assert [window["probability"] for window in said] == pytest.approx([w["probability"] for w in expected], abs=1e-4)

    program = torch.export.load("exported/model.pt2").module()
    model, _, examples = portable.forms(project / "exported")
    for frames, spectrograms in examples:  # of different numbers of windows
        assert torch.allclose(program(frames, spectrograms)[0], model(frames, spectrograms)[0], atol=1e-4)

    card = (project / "exported/README.md").read_text()
    assert card.startswith("---\nlibrary_name: maavt\n") and "license" in card
    assert "| accuracy |" in card and "On 4 test clips" in card and "100.0 % of those" in card
    assert "`disc-siren`" in card or "`disc-tone`" in card


@pytest.mark.long
def test_onnx_is_written_where_it_is_asked_for_and_equals_the_model(project, capsys):
    pytest.importorskip("onnxscript")
    assert run("exported", "--onnx") == 0
    model, _, examples = portable.forms(project / "exported")
    assert portable.check(model, portable.read_onnx(project / "exported/model.onnx"), examples, "onnx") <= 1e-4
    assert "model.onnx" in (project / "exported/README.md").read_text()


def test_a_form_that_differs_from_the_model_is_not_published(project):
    model, form, examples = portable.forms(project / "data/models/maavt")
    with torch.no_grad():
        form.model.head.bias += 0.01 * torch.arange(len(form.model.head.bias))
    with pytest.raises(errors.UserError, match="differs from the model by"):
        portable.check(model, form, examples, "model.pt2")


def test_a_folder_of_the_users_is_not_replaced(project, capsys):
    (project / "mine").mkdir()
    (project / "mine/thesis.tex").write_text("")
    assert run("mine") == 1
    assert "is there already and no exported model" in capsys.readouterr().err
    assert (project / "mine/thesis.tex").exists()
