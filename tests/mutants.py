"""make mutants: small changes (mutants) to the code that pyproject.toml names in tool.mutmut, one at a time. A mutant
that no test notices survives: either a test is missing, or the change makes no difference.

Writes mutants/report.txt: the share of mutants killed in each module, and the diff of each survivor. Ends with 1 where
a module has less than LEAST, or mutants that were not tried in the time given. mutmut makes the mutants, takes for each
the tests that call the changed function, the fastest first, and ends those that run far longer than without the change.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

import pytest

LEAST = 0.85
MADE = "tests/stages/test_train.py::test_curves_have_a_row_per_epoch"  # a test that asks for the fixture `made`
KILLED = ("killed", "timeout", "segfault")


def main() -> int:
    parser = argparse.ArgumentParser("make mutants", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="stop after so many (default 60)")
    parser.add_argument("only", nargs="*", help="patterns of mutants, such as 'maavt.shards.*'; by default all")
    options = parser.parse_args()
    shutil.rmtree("mutants", ignore_errors=True)  # mutmut keeps results, also where a test changed
    with tempfile.TemporaryDirectory(prefix="maavt-mutants-") as folder:
        # All mutants share the project that the fixture `made` makes, once and beforehand, as parallel tests share it.
        environment = os.environ | {"PYTEST_DEBUG_TEMPROOT": folder, "PYTEST_XDIST_WORKER": "mutants"}
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", MADE], env=environment, check=True)
        process = subprocess.Popen(["mutmut", "run", *options.only], env=environment, start_new_session=True)
        try:
            failed = process.wait(60 * options.minutes)
        except subprocess.TimeoutExpired:
            failed = 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the tests that it runs; its results are on disk
            process.wait()
    if failed:
        return failed
    return report(options.only)


def report(only: list[str]) -> int:
    from mutmut.__main__ import collect_source_file_mutation_data
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code

    counts, survivors = defaultdict(Counter), []
    for data, name, code in collect_source_file_mutation_data(mutant_names=only)[0]:
        status = status_by_exit_code[code]
        counts[data.path][status] += 1
        if status not in (*KILLED, "not checked"):
            survivors.append(f"# {name}: {status}\n{get_diff_for_mutant(name, path=data.path)}")
    lines, enough = [], True
    for path, found in sorted(counts.items()):
        killed, total = sum(found[status] for status in KILLED), found.total() - found["not checked"]
        enough &= not found["not checked"] and killed >= LEAST * total
        lines.append(f"{path}: {killed} of {total} mutants killed ({killed / max(total, 1):.1%}), "
                     f"{found['not checked']} not tried")
    Path("mutants/report.txt").write_text("\n".join([*lines, "", *survivors]))
    print("\n".join(lines))
    print(f"the diffs of the {len(survivors)} survivors are in mutants/report.txt; mutmut browse shows them, too")
    return 0 if enough else 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """As a plugin of the tests of each mutant: their folders are not kept, which would fill the disk."""
    shutil.rmtree(session.config._tmp_path_factory.getbasetemp(), ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
