import json
import os
import pickle
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import webdataset as wds

from maavt.clips import read_manifest
from maavt.errors import UserError
from maavt.shards import reader
from maavt.shards.loader import Loader
from maavt.shards.reader import Reader
from maavt.work import sha256
from tests.conftest import free_port


def loader(project: Path, split="train", batch=16) -> Loader:
    return Loader(project / "data/shards/synth", split, batch=batch, image_size=32)


def pairs(batches) -> list[tuple[str, int]]:
    return [pair for batch in batches for pair in zip(batch.keys, batch.seconds, strict=True)]


def order(project, epoch=1, seed=0, held=40) -> list[tuple[str, int]]:
    return pairs(loader(project).shuffled(seed=seed, epoch=epoch, held=held))


def test_in_order_every_pair_comes_once(made):
    found = pairs(loader(made, "test").in_order())
    assert len(found) == len(set(found)) == 40 == loader(made, "test").pairs


def test_shuffled_every_pair_comes_once_in_batches_of_almost_one_size(made):
    batches = list(loader(made).shuffled(seed=0, epoch=1, held=40))
    found = pairs(batches)
    assert len(found) == len(set(found)) == 100
    assert len(batches) == loader(made).steps() == 7 and {len(batch.labels) for batch in batches} == {14, 15}


def test_the_order_is_fixed_by_seed_and_epoch(made):
    assert order(made) == order(made)
    assert order(made) != order(made, epoch=2)
    assert order(made) != order(made, seed=1)


def test_the_order_does_not_depend_on_the_number_of_threads(made, monkeypatch):
    first = order(made)
    monkeypatch.setenv("MAAVT_WORKERS", "5")
    assert order(made) == first


@pytest.mark.parametrize("skip", [1, 3, 99])
def test_batches_that_are_left_out_change_nothing_of_the_others(made, skip):
    whole = list(loader(made, "train").shuffled(seed=0, epoch=2, held=30))[skip:]
    found = list(loader(made, "train").shuffled(seed=0, epoch=2, held=30, skip=skip))
    assert [batch.keys for batch in found] == [batch.keys for batch in whole]
    assert all(torch.equal(one.frames, other.frames) for one, other in zip(found, whole, strict=True))


def test_batches_hold_uint8_frames_float16_spectrograms_and_labels_with_background(made):
    batches = list(loader(made, "test").in_order())
    for batch in batches:
        assert batch.frames.shape[1:] == (3, 32, 32) and batch.frames.dtype == torch.uint8
        assert batch.spectrograms.shape[1:] == (98, 98) and batch.spectrograms.dtype == torch.float16
    labels = torch.cat([batch.labels for batch in batches])
    assert set(labels.tolist()) == {-1, 0, 1, 2, 3}


def test_labels_are_those_of_the_manifest(made):
    from maavt.clips import read_manifest

    clips, labels = read_manifest(made / "data/raw/synth")
    truth = {clip.key: clip.second_labels(10) for clip in clips}
    names = [*labels.classes, None]
    for batch in loader(made).shuffled(seed=0, epoch=1, held=10):
        for key, second, label in zip(batch.keys, batch.seconds, batch.labels, strict=True):
            assert names[label] == truth[key][second]


def test_crops_differ_between_epochs_but_not_in_evaluation(made):
    def frames(batches):
        return {pair: image for batch in batches
                for pair, image in zip(zip(batch.keys, batch.seconds, strict=True), batch.frames, strict=True)}

    one, two = (frames(loader(made).shuffled(seed=0, epoch=epoch, held=40)) for epoch in (1, 2))
    assert any((one[pair] != two[pair]).any() for pair in one.keys() & two.keys())
    still, again = frames(loader(made).in_order()), frames(loader(made).in_order())
    assert all((still[pair] == again[pair]).all() for pair in still)


@pytest.mark.parametrize("damage", ["cut at a block", "cut", "one bit", "one sample fewer", "empty"])
def test_an_altered_shard_is_an_error_that_names_it(project, damage):
    path = next((project / "data/shards/synth/train").glob("*.tar"))
    data = path.read_bytes()
    changed = {
        "cut at a block": data[: len(data) // 3 // 512 * 512],
        "cut": data[: len(data) // 2 + 7],
        "one bit": data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        "one sample fewer": data[: data.rindex(b"ustar") - 257] + bytes(1024),
        "empty": b"",
    }[damage]
    path.unlink()
    path.write_bytes(changed)
    with pytest.raises(UserError, match=f"{path.name} is not the one that index.json describes"):
        list(loader(project).in_order())


@pytest.mark.parametrize("how", ["in place", "by another file of the same size and time"])
def test_a_shard_altered_after_it_was_read_is_an_error_that_names_it(project, how):
    reading = loader(project)
    before = pairs(reading.in_order())
    assert pairs(reading.in_order()) == before
    path = project / "data/shards/synth" / reading.shards[-1]
    data, times = bytearray(path.read_bytes()), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    data[5000] ^= 1
    path.rename(path.with_suffix(".before"))  # keeps its inode from being given to the new file
    if how == "in place":
        path.with_suffix(".before").rename(path)
    path.write_bytes(data)
    if how != "in place":
        os.utime(path, ns=times)
    with pytest.raises(UserError, match=f"{path.name} is not the one that index.json describes"):
        list(reading.in_order())


def test_a_missing_shard_is_an_error_that_names_it(project):
    path = next((project / "data/shards/synth/train").glob("*.tar"))
    path.unlink()
    with pytest.raises(UserError, match=path.name):
        list(loader(project).in_order())


def test_without_shards_the_error_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="run the shard stage first"):
        Loader(tmp_path, "train", batch=1, image_size=32)


def test_no_pickle_is_ever_loaded(project):
    import io

    import numpy as np

    path = next((project / "data/shards/synth/test").glob("*.tar"))
    sample = next(Reader(path.parents[1]).samples([f"test/{path.name}"]))
    with io.BytesIO() as buffer:
        np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        sample["spectrogram.npy"] = buffer.getvalue()
    with pytest.raises(ValueError, match="Python objects"):
        list(loader(project, "test")._pairs(sample, None))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_members_of_a_shard_that_carry_code_are_bytes_and_nothing_more(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with wds.TarWriter(str(tmp_path / "a.tar"), encoder=False) as tar:
        tar.write({"__key__": "a", **{f"x.{kind}": pickle.dumps(Evil()) for kind in ("pyd", "pth", "pickle", "pkl")}})
    facts = {"shards": {"a.tar": {"sha256": sha256(tmp_path / "a.tar")}}}
    (tmp_path / "index.json").write_text(json.dumps(facts))
    (sample,) = Reader(tmp_path).samples(["a.tar"])
    assert sample["x.pyd"] == pickle.dumps(Evil()) and not (tmp_path / "evil").exists()


@pytest.fixture
def server(made):
    """A web server on this machine that has the made shards; `state` says how it behaves and what was asked."""
    state = SimpleNamespace(asked=[], fail=0, cut=None)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=made / "data/shards/synth")

        def do_GET(self):
            state.asked.append(self.path)
            if state.fail:
                state.fail -= 1
                self.send_error(503)
            elif state.cut and self.path.endswith(state.cut):
                data = (made / "data/shards/synth" / self.path[1:]).read_bytes()[:-2048]
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{httpd.server_port}"
        yield state
        httpd.shutdown()


def test_shards_on_a_web_server_give_the_same_batches(made, server, monkeypatch):
    monkeypatch.setattr(reader, "PAUSE", 0.01)
    server.fail = 1  # once is no reason to give up
    remote = Loader(server.url, "train", batch=16, image_size=32)
    here, there = (list(one.shuffled(seed=0, epoch=1, held=40)) for one in (loader(made), remote))
    assert [batch.keys for batch in here] == [batch.keys for batch in there]
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(here, there, strict=True))


def test_a_shard_cut_short_on_the_way_is_an_error_that_names_it(server):
    server.cut = "synth-test-000000.tar"
    with pytest.raises(UserError, match="/test/synth-test-000000.tar is not the one that index.json describes"):
        list(Loader(server.url, "test", batch=16, image_size=32).in_order())


def test_a_server_that_does_not_answer_is_an_error_that_names_it(server, monkeypatch):
    monkeypatch.setattr(reader, "PAUSE", 0.01)
    server.fail = 100
    with pytest.raises(UserError, match=r"http://127.0.0.1:\d+/index.json cannot be fetched .* tried 3 times"):
        Loader(server.url, "test", batch=16, image_size=32)


def test_a_server_that_is_down_is_told_apart_from_a_place_without_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "PAUSE", 0.01)
    monkeypatch.setenv("MAAVT_SHARDS", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match=r"index.json cannot be fetched \(ClientConnectorError: .*tried 3 times"):
        Reader.of("synth")
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setenv("MAAVT_SHARDS", f"http://127.0.0.1:{httpd.server_port}/elsewhere")
        with pytest.raises(UserError, match="no http.*/elsewhere/index.json; copy .* there, or change MAAVT_SHARDS"):
            Reader.of("synth")
        httpd.shutdown()
    monkeypatch.setenv("MAAVT_SHARDS", str(tmp_path))
    with pytest.raises(UserError, match="copy .* there, or change MAAVT_SHARDS"):
        Reader.of("synth")


@pytest.mark.parametrize("ranks", [2, 3, 50])
def test_in_order_several_processes_get_every_pair_once_together(made, ranks):
    each = [pairs(loader(made, "test").in_order(rank, ranks)) for rank in range(ranks)]
    assert [pair for own in each for pair in own] == pairs(loader(made, "test").in_order())
    assert max(map(len, each)) - min(map(len, each)) <= 1


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_process_gets_the_same_number_of_steps_and_pairs_of_its_own(made, ranks):
    each = [list(loader(made, batch=8).shuffled(seed=0, epoch=1, held=20, rank=rank, ranks=ranks))
            for rank in range(ranks)]
    assert {len(batches) for batches in each} == {loader(made, batch=8).steps(ranks)} == {-(-100 // (8 * ranks))}
    sizes = [[len(batch.labels) for batch in batches] for batches in each]
    assert all(own == sizes[0] for own in sizes) and max(sizes[0]) <= 8 and max(sizes[0]) - min(sizes[0]) <= 1
    found = [pair for batches in each for pair in pairs(batches)]
    assert len(set(found)) == 100 and len(found) < 100 + ranks  # where they do not divide, a few come twice


def test_a_process_opens_only_the_shards_of_its_own_pairs(made, server):
    remote = Loader(server.url, "train", batch=8, image_size=32)
    server.asked.clear()
    list(remote.shuffled(seed=0, epoch=1, held=20, rank=0, ranks=3))
    assert len(server.asked) < len(remote.shards) == 3


def test_fewer_pairs_than_processes_is_an_error(made):
    with pytest.raises(UserError, match="100 pairs for 101 processes"):
        list(loader(made).shuffled(seed=0, epoch=1, held=20, rank=0, ranks=101))


def test_every_pair_is_the_picture_the_sound_and_the_label_of_one_and_the_same_second(made):
    """Against the clips themselves: nothing swapped, nothing off by a second."""
    from maavt.media.decode import decode
    from maavt.media.spectrogram import filter_bank

    raw = made / "data/raw/synth"
    clips, labels = read_manifest(raw)
    media = {clip.key: decode(raw / clip.path, seconds=10, frame_size=48, sample_rate=16000)
             for clip in clips if clip.split == "test"}
    truth = {clip.key: clip for clip in clips}
    for batch in loader(made, "test").in_order():
        for place, (key, second) in enumerate(zip(batch.keys, batch.seconds, strict=True)):
            clip, seen = truth[key], torch.from_numpy(media[key].frames[:, 8:40, 8:40]).float()
            off = (seen - batch.frames[place].permute(1, 2, 0).float()).abs().mean((1, 2, 3))  # from each second
            assert off[second] < 8 and off[second] == off.min()
            sound = media[key].waveform.reshape(10, 16000)
            heard = torch.stack([torch.from_numpy(filter_bank(one, 16000, bins=98, shift_ms=10)) for one in sound])
            off = (heard - batch.spectrograms[place].float()).abs().mean((1, 2))
            assert off[second] < 0.01 and off[second] == off.min()
            event = clip.start <= second < clip.end
            assert batch.labels[place] == (labels.classes.index(clip.label) if event else -1)


def test_shards_of_another_data_set_are_refused(made, monkeypatch):
    monkeypatch.setenv("MAAVT_SHARDS", str(made / "data/shards/synth"))
    assert Reader.of("synth").index["dataset"] == "synth"
    with pytest.raises(UserError, match="are of the data set synth, and params.yaml asks for ave; unset MAAVT_SHARDS"):
        Reader.of("ave")


def test_the_password_of_a_place_that_cannot_be_reached_is_not_shown(monkeypatch):
    monkeypatch.setattr(reader, "PAUSE", 0)
    monkeypatch.setenv("MAAVT_SHARDS", "http://ann:planted@127.0.0.1:9/shards")
    with pytest.raises(UserError) as error:
        Reader.of("synth")
    assert "http://***@127.0.0.1:9/shards/index.json" in str(error.value) and "planted" not in str(error.value)
