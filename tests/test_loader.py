from pathlib import Path

import pytest
import torch

from maavt.errors import UserError
from maavt.loader import Loader
from maavt.reader import Reader


def loader(project: Path, split="train", batch=16) -> Loader:
    return Loader(project / "data/shards/synth", split, batch=batch, image_size=32)


def pairs(batches) -> list[tuple[str, int]]:
    return [pair for batch in batches for pair in zip(batch.keys, batch.seconds, strict=True)]


def order(project, epoch=1, seed=0, held=40) -> list[tuple[str, int]]:
    return pairs(loader(project).shuffled(seed=seed, epoch=epoch, held=held))


def test_in_order_every_pair_comes_once(made):
    found = pairs(loader(made, "test").in_order())
    assert len(found) == len(set(found)) == 40 == loader(made, "test").pairs


def test_shuffled_every_pair_comes_once_but_for_a_last_short_batch(made):
    found = order(made)
    assert len(found) == len(set(found)) == 100 // 16 * 16


def test_the_order_is_fixed_by_seed_and_epoch(made):
    assert order(made) == order(made)
    assert order(made) != order(made, epoch=2)
    assert order(made) != order(made, seed=1)


def test_the_order_does_not_depend_on_the_number_of_threads(made, monkeypatch):
    first = order(made)
    monkeypatch.setenv("MAAVT_WORKERS", "5")
    assert order(made) == first


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
    names = [*labels.classes, "background"]
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
    with pytest.raises(ValueError, match="allow_pickle"):
        list(loader(project, "test")._pairs(sample, None))
