"""The same work on a real Dask cluster on this machine."""

import os
import signal
import time

import pytest

from maavt.errors import UserError
from maavt.media.rejected import Rejected
from maavt.stages import shard
from maavt.work import sha256
from maavt.workers import fan_out

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None,
                                  worker_dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def on_cluster(cluster, monkeypatch):
    monkeypatch.setenv("MAAVT_DASK", cluster.scheduler_address)


def misbehave(item):
    if item == "hang":
        time.sleep(100)
    if item == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "reject":
        raise Rejected("too short")
    if item == "fail":
        raise KeyError("unexpected")
    return item, os.getpid()


def test_results_come_in_order_and_a_failure_costs_its_item_only(on_cluster):
    items = [*range(20), "die", "reject", "hang", *range(20)]
    found = list(fan_out(misbehave, items, time_limit=2))
    assert [item for item, _ in found] == items
    assert [result.reason for _, result in found if isinstance(result, Rejected)] == [
        "decoder crashed", "too short", "timed out"]
    assert all(result[0] == item for item, result in found if not isinstance(result, Rejected))


@pytest.mark.long
def test_another_error_is_raised_here(on_cluster):
    with pytest.raises(KeyError, match="unexpected"):
        list(fan_out(misbehave, [1, "fail", 2]))


@pytest.mark.long
def test_with_tolerance_it_costs_its_item_only_and_its_traceback_is_logged_here(on_cluster, caplog):
    found = [result for _, result in fan_out(misbehave, [1, "fail", 2], tolerant=True)]
    assert (found[0][0], found[1].reason, found[2][0]) == (1, "failed here", 2)
    assert caplog.text.count("fail: KeyError: 'unexpected'; it is left out") == 1 and "in misbehave" in caplog.text


def test_shards_are_the_same_byte_for_byte(project, on_cluster, monkeypatch):
    monkeypatch.setattr("maavt.workers.local._Crew", None)  # no work in this process
    before = {path.name: sha256(path) for path in (project / "data/shards").rglob("*.*")}
    shard.main([])
    assert {path.name: sha256(path) for path in (project / "data/shards").rglob("*.*")} == before


def test_a_cluster_that_is_not_there_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr("maavt.workers.dask.CONNECT", 0.2)
    monkeypatch.setenv("MAAVT_DASK", "tcp://127.0.0.1:9")
    with pytest.raises(UserError, match="MAAVT_DASK=tcp://127.0.0.1:9: no Dask scheduler answers there"):
        list(fan_out(misbehave, [1]))
