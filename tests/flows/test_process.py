"""One command of a run, and its log."""

import logging
import sys

import prefect

from flows.process import run


def test_passwords_of_urls_are_in_no_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(prefect, "get_run_logger", lambda: logging.getLogger("a run"))
    caplog.set_level(logging.INFO, logger="a run")
    with open(tmp_path / "lock", "w") as lock:
        done = run([sys.executable, "-c", "print('s3://ann:planted@host/a?X-Amz-Signature=planted')"], tmp_path,
                   lock.fileno(), tmp_path / "stage.log")
    expected = "s3://***@host/a?X-Amz-Signature=***"
    assert done.code == 0 and done.tail == expected and done.log.read_text() == f"{expected}\n"
    assert caplog.messages == [expected]
