"""What the README and the documentation tell people to type is what works."""

import re
import shlex
import shutil
import subprocess

import pytest

from flows.settings import changed_text
from maavt import cli, errors
from tests.conftest import ROOT

PAGES = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in
                                                                   ("clips", "cluster", "comparing", "data", "faq",
                                                                    "predicting", "training"))])
SECTION = (ROOT / "docs" / "predicting.md").read_text()
SHELL, PYTHON = (re.findall(rf"```{kind}\n(.*?)```", SECTION, re.DOTALL) for kind in ("sh", "python"))
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGES, re.DOTALL) for line in block.splitlines()]
WITHIN = re.findall(r"`((?:make|dvc|maavt|python -m) [^`]*)`", PAGES)
TYPED = [words for line in [*LINES, *WITHIN] if line.startswith(("make", "dvc", "maavt", "python")) and
         (words := shlex.split(line, comments=True))]


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


def test_every_command_of_maavt_is_one_that_there_is():
    named = {command[1] for command in TYPED if command[0] == "maavt"} - {"COMMAND"}
    assert named and named <= {*cli.STAGES, *cli.COMMANDS}


@pytest.mark.parametrize("command", [command for command in TYPED if command[0] == "make"], ids=shlex.join)
def test_what_make_is_asked_for_is_a_target_and_its_settings_there_are(command):
    said = subprocess.run([*command, "--dry-run", "--assume-old=.venv/bin/.installed"], cwd=ROOT, check=True,
                          capture_output=True, text=True).stdout
    for module, typed in re.findall(r"python -m (flows\.\S+)(.*)", said):
        options = shlex.split(typed)
        assert_options(module, options)
        if module == "flows.exp":
            changed_text(ROOT, [option for option in options if re.match(r"[a-z_.]+=", option)])
        changed_text(ROOT, [options[number + 1] for number, option in enumerate(options) if option == "-S"])


@pytest.mark.parametrize("command", [command for command in TYPED if command[0] == "python"], ids=shlex.join)
def test_every_module_of_the_readme_takes_the_options_that_it_is_given(command):
    _, _, module, *options = command
    assert_options(module, [option for option in options if option != "--help"])


def assert_options(module: str, options: list[str]) -> None:
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    for option in options:
        assert not option.startswith("-") or f'"{option}"' in source, option


@pytest.mark.long
def test_the_views_of_dvc_and_what_tells_of_clips_work_as_they_are_typed(project):
    shutil.copy("data/raw/synth/test/test-00001.mp4", "my_clip.mp4")
    typed = [line.partition("#")[0] for line in LINES if line.startswith(("dvc exp show", "dvc metrics", "maavt probe",
                                                                          "maavt clips"))]
    assert len(typed) >= 3
    for line in dict.fromkeys(typed):
        line = line.replace("/path/to/clips/*/*", "my_clip.mp4")
        done = subprocess.run(line, shell=True, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, f"{line}: {done.stderr}"
