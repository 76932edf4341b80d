"""What fan_out() promises when its workers hang, crash, are killed, or lose their parent."""

import ctypes
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from itertools import count
from types import ModuleType

import numpy as np
import psutil
import pytest

from maavt.errors import UserError
from maavt.media.decode import Rejected
from maavt.work import default_workers
from maavt.workers import fan_out


def square(number: int) -> int:
    return number * number


def misbehave(how: str):
    if how == "hang holding the interpreter":
        re.match(r"(a+)+$", "a" * 60 + "b")  # for ages, within one call of C code
    elif how == "hang":
        time.sleep(1000)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(0)
    elif how == "sys.exit":
        sys.exit()
    elif how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "rejected":
        raise Rejected("too short", "a second")
    elif how == "error":
        raise KeyError("unexpected")
    elif how == "error that cannot be pickled":
        raise type("Local", (Exception,), {})("unexpected")
    elif how == "result that cannot be pickled":
        return lambda: None
    return how


def large(number: int) -> np.ndarray:
    return np.full(3_000_000, number % 256, np.uint8)


def children() -> list[psutil.Process]:
    """Worker processes of this one: not what multiprocessing keeps, nor what other tests have left."""
    return [c for c in psutil.Process().children() if c.status() != psutil.STATUS_ZOMBIE
            and "spawn_main" in " ".join(c.cmdline()) and c not in OTHERS]


OTHERS: list[psutil.Process] = []


@pytest.fixture(autouse=True, scope="module")
def others():
    OTHERS.extend(psutil.Process().children())


def verdicts(items, **options) -> list:
    return [result.reason if isinstance(result, Rejected) else result
            for _, result in fan_out(misbehave, items, workers=2, **options)]


def test_results_come_in_the_order_of_the_items():
    items = [random.Random(i).randrange(1000) for i in range(200)]
    assert list(fan_out(square, items, workers=2)) == [(item, item * item) for item in items]
    assert children() == []


def test_workers_serve_any_thread_and_outlive_the_one_that_started_them():
    results = fan_out(square, range(20), workers=2)
    first = []
    thread = threading.Thread(target=lambda: first.append(next(results)))
    thread.start()
    thread.join()
    assert first + list(results) == [(number, number * number) for number in range(20)]


def test_no_items_start_no_workers():
    assert list(fan_out(square, [], workers=2)) == []


def test_failure_of_an_item_is_its_result_and_harms_no_other():
    items = ["a", "segfault", "b", "exit", "rejected", "c", "killed", "sys.exit", "d", "e"]
    crash = "decoder crashed"
    assert verdicts(items) == ["a", crash, "b", crash, "too short", "c", crash, crash, "d", "e"]
    assert children() == []


def test_item_over_its_time_limit_is_rejected_whatever_it_is_stuck_in():
    items = ["a", "hang", "b", "hang holding the interpreter", "c"]
    assert verdicts(items, time_limit=1) == ["a", "timed out", "b", "timed out", "c"]


def test_rejection_names_the_item_and_what_happened():
    results = [str(result) for _, result in fan_out(misbehave, ["segfault", "hang"], workers=2, time_limit=0.5,
                                                    label=lambda item: f"clip {item}")]
    assert results == ["decoder crashed: the process was killed by SIGSEGV on clip segfault",
                       "timed out: clip hang took longer than 0.5 s"]


@pytest.mark.parametrize("how, error", [("error", KeyError), ("error that cannot be pickled", RuntimeError),
                                        ("result that cannot be pickled", RuntimeError)])
def test_other_error_is_raised_in_its_turn_with_its_origin(how, error):
    results = fan_out(misbehave, ["a", how, "b"], workers=2)
    assert next(results) == ("a", "a")
    with pytest.raises(error) as caught:
        next(results)
    notes = "".join([str(caught.value), *caught.value.__notes__])
    assert f"in a worker process, on {how}" in notes
    assert "Traceback" in notes and ("misbehave" in notes or "pickle" in notes)
    assert children() == []


def test_few_items_are_in_flight_however_many_there_are():
    taken = count()
    results = fan_out(square, (next(taken) for _ in range(10**9)), workers=2)
    for number in range(50):
        assert next(results) == (number, number * number)
    assert next(taken) <= 50 + 32
    results.close()
    assert children() == []


def test_workers_killed_at_any_instant_cost_at_most_what_they_had_in_hand():
    stop, progress = threading.Event(), threading.Event()
    kills = count()

    def kill_now_and_then():
        rng = random.Random(1)
        while not stop.wait(rng.uniform(0.05, 1)):
            if progress.is_set() and (crew := children()):  # else a slow machine would never get a worker started
                progress.clear()
                with suppress(psutil.NoSuchProcess):
                    rng.choice(crew).kill()
                    next(kills)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        lost = 0
        for number, (item, result) in enumerate(fan_out(large, range(400), workers=2, time_limit=20)):
            progress.set()
            assert item == number
            if isinstance(result, Rejected):
                assert result.reason == "decoder crashed"
                lost += 1
            else:
                assert np.array_equal(result, large(number))
    finally:
        stop.set()
        killer.join()
    assert number == 399
    assert lost <= next(kills)


def test_function_that_workers_cannot_import_is_an_error_and_not_a_rejection(monkeypatch):
    module = ModuleType("nowhere")
    exec("def function(item): return item", module.__dict__)
    monkeypatch.setitem(sys.modules, "nowhere", module)
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        list(fan_out(module.function, [1, 2], workers=2))


class DeadlyToImport:
    def __call__(self, item):
        return item

    def __reduce__(self):
        return os._exit, (3,)


def test_workers_that_cannot_start_are_an_error_and_not_a_rejection():
    with pytest.raises(RuntimeError, match="cannot start: the last one ended with exit code 3"):
        list(fan_out(DeadlyToImport(), [1, 2], workers=2))
    assert children() == []


def _start(folder, script: str) -> subprocess.Popen:
    (folder / "script.py").write_text(textwrap.dedent(script))
    return subprocess.Popen([sys.executable, "script.py"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, start_new_session=True)


ENDLESS = """
    import time
    from itertools import count
    from maavt.workers import fan_out

    def hang(item):
        if item:
            time.sleep(1000)

    if __name__ == "__main__":
        results = fan_out(hang, count(), workers=2)
        try:
            for item, _ in results:
                print("begun", flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""


def _group(leader: int) -> list[psutil.Process]:
    """All living processes of the session that a process leads or led."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass
    return found


def _wait_until_gone(leader: int) -> list[psutil.Process]:
    for _ in range(200):
        if not _group(leader):
            break
        time.sleep(0.05)
    return _group(leader)


def test_ctrl_c_ends_all_workers_without_a_word_from_them(tmp_path):
    process = _start(tmp_path, ENDLESS)
    assert process.stdout.readline() == "begun\n"
    assert len(_group(process.pid)) >= 3
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "interrupted\n"
    assert _wait_until_gone(process.pid) == []


def test_ctrl_c_while_workers_start_leaves_no_traceback_of_theirs(tmp_path):
    process = _start(tmp_path, ENDLESS.replace("count(), workers=2", "iter([1]), workers=1"))
    while len(_group(process.pid)) < 2:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert "spawn" not in process.communicate(timeout=30)[0]
    assert _wait_until_gone(process.pid) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_their_parent(tmp_path, how):
    process = _start(tmp_path, ENDLESS)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(how)
    process.communicate(timeout=30)
    assert _wait_until_gone(process.pid) == []


def test_closing_the_iterator_ends_the_workers():
    results = fan_out(misbehave, ["a", "hang", "hang"], workers=2)
    assert next(results) == ("a", "a")
    assert children() != []
    results.close()
    assert children() == []


def test_number_of_workers_is_that_of_the_environment(monkeypatch):
    monkeypatch.setenv("MAAVT_WORKERS", "3")
    assert default_workers() == 3
    monkeypatch.delenv("MAAVT_WORKERS")
    assert default_workers() == len(os.sched_getaffinity(0))
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("MAAVT_WORKERS", wrong)
        with pytest.raises(UserError, match=f"MAAVT_WORKERS='{wrong}': expected a positive whole number"):
            default_workers()


def fail_on_7(number: int) -> int:
    if number == 7:
        raise ZeroDivisionError("a mistake of ours")
    return number


def test_with_tolerance_a_mistake_of_ours_costs_its_item_only_and_its_traceback_is_logged(caplog):
    results = [result for _, result in fan_out(fail_on_7, range(500), workers=2, tolerant=True)]
    assert [result for result in results if not isinstance(result, Rejected)] == [n for n in range(500) if n != 7]
    assert results[7].reason == "failed here" and results[7].detail == "ZeroDivisionError: a mistake of ours"
    assert "in fail_on_7" in caplog.text
