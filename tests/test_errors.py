import errno
import os
import signal
import subprocess
import sys

import pytest

from maavt.errors import UsageError, UserError, redacted, run


def raising(error):
    def main():
        raise error
    return main


@pytest.mark.parametrize("error, code, told", [
    (UserError("the file a is odd; remove it"), 1, "error: the file a is odd; remove it"),
    (UsageError("no such option"), 2, "error: no such option"),
    (OSError(errno.ENOSPC, "x", "/data/a"), 1, "error: /data/a: No space left on device; free some space"),
    (PermissionError(errno.EACCES, "x", "/data/a"), 1, "error: /data/a: Permission denied; make it writable"),
    (KeyboardInterrupt(), 130, "interrupted; what was finished is kept"),
])
def test_what_goes_wrong_is_one_line_and_an_exit_code(error, code, told, capsys):
    assert run(raising(error)) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(told)


def test_what_goes_well_is_silent(capsys):
    assert run(lambda: None) == 0
    assert capsys.readouterr().err == ""


def test_a_reader_who_has_seen_enough_is_no_error():
    code = "import sys\nfrom maavt.errors import run\ndef main():\n for _ in range(99999): print('line')\n" \
           "sys.exit(run(main))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_one_line(sent):
    code = "import sys, time\nfrom maavt.errors import run\ndef main():\n print('on', flush=True); time.sleep(60)\n" \
           "sys.exit(run(main))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        os.kill(process.pid, sent)
        _, told = process.communicate()
    assert process.returncode == 130
    assert told.decode().count("\n") == 1 and b"Traceback" not in told


@pytest.mark.parametrize("shown, expected", [
    ("no https://ann:planted@host:80/a/b; set it", "no https://***@host:80/a/b; set it"),
    ("(ftp://planted@host)", "(ftp://***@host)"),
    ("https://ann:pl@nted@host/", "https://***@host/"),
    ("'https://h/a?token=planted&x=1'", "'https://h/a?token=***&x=1'"),
    ("https://h/a?v=1&X-Amz-Signature=planted&X-Amz-Credential=planted%2Fb", "https://h/a?v=1&X-Amz-Signature=***"
     "&X-Amz-Credential=***"),
    ("https://h/a?sv=2&sig=planted%3D", "https://h/a?sv=2&sig=***"),
    ("https://h/#access_token=planted", "https://h/#access_token=***"),
    ("https://h:80/uc?export=download&id=1Fj, a@b.example", "https://h:80/uc?export=download&id=1Fj, a@b.example"),
])
def test_secrets_of_urls_are_never_shown(shown, expected, capsys):
    assert redacted(shown) == str(UserError(shown)) == expected
    assert run(raising(OSError(shown))) == 1
    assert expected in capsys.readouterr().err
