"""`maavt bench data` runs every way and writes a row for each."""

import csv

import pytest

from maavt.commands import bench

pytest.importorskip("imageio_ffmpeg")


@pytest.mark.long
def test_every_way_is_measured_on_the_same_clips(project):
    bench.main(["data", "--clips", "1", "--rounds", "1"])
    with open(project / "data/bench/data.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["way"], row["workers"]) for row in rows] == [
        ("sharding", "usual, files only", "1"), ("sharding", "usual", "1"), ("sharding", "maavt", "1"),
        ("sharding", "maavt", "2"), ("loading", "usual", "1"), ("loading", "maavt", "1")]
    assert all(float(row["cpu_ms"]) > 0 and float(row["peak_memory_mb"]) > 10 for row in rows)
    assert [row["ratio"] for row in rows if row["way"] == "usual"] == ["1.00", "1.00"]
