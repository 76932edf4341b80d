"""What the README tells people to type about recordings, vectors and exported models is what works."""

import re
import shlex
import shutil

import pytest

from maavt import cli, errors
from tests.conftest import ROOT

SECTION = (ROOT / "README.md").read_text().split("\n## Ask it")[1].split("\n## ")[0]
SHELL, PYTHON = (re.findall(rf"```{kind}\n(.*?)```", SECTION, re.DOTALL) for kind in ("sh", "python"))


def test_the_commands_of_the_readme_work_one_after_the_other(project, capsys):
    if "--onnx" in SECTION:
        pytest.importorskip("onnxscript")
    shutil.copy("data/raw/synth/test/test-00001.mp4", "my_clip.mp4")
    shutil.copytree("data/raw/synth/test", "recordings")
    commands = [shlex.split(line, comments=True) for block in SHELL for line in block.splitlines()]
    assert {command[1] for command in commands} >= {"predict", "embed", "search", "export"}
    for program, *arguments in commands:
        assert program == "maavt"
        assert errors.run(lambda arguments=arguments: cli.command(arguments)) == 0, capsys.readouterr().err
    capsys.readouterr()
    for block in PYTHON:
        exec(block, {})
    assert capsys.readouterr().out
