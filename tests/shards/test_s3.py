"""Shards in S3, against a real S3 server (moto's) on loopback."""

import boto3
import fsspec
import pytest
import torch
from moto.server import ThreadedMotoServer

from maavt.errors import UserError
from maavt.shards import reader
from maavt.shards.loader import Loader


@pytest.fixture(scope="module")
def bucket(made):
    """The URL of a bucket with the shards of the made project."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key",
                            "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(name, value)
        patch.setattr(reader, "PAUSE", 0.01)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        client = boto3.client("s3")
        client.create_bucket(Bucket="shards")
        folder = made / "data/shards/synth"
        for path in (path for path in folder.rglob("*") if path.is_file()):
            client.upload_file(str(path), "shards", f"synth/{path.relative_to(folder)}")
        yield "s3://shards/synth"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_shards_in_s3_give_the_same_batches_as_those_on_disk(made, bucket):
    here, there = (list(Loader(place, "train", batch=16, image_size=32).shuffled(seed=0, epoch=1, held=40))
                   for place in (made / "data/shards/synth", bucket))
    assert [batch.keys for batch in here] == [batch.keys for batch in there]
    assert all(torch.equal(a.frames, b.frames) and torch.equal(a.spectrograms, b.spectrograms)
               for a, b in zip(here, there, strict=True))


def test_a_bucket_or_shard_that_is_not_there_is_an_error_that_names_it(bucket):
    with pytest.raises(UserError, match="s3://nowhere/synth/index.json"):
        Loader("s3://nowhere/synth", "train", batch=16, image_size=32)
    loader = Loader(bucket, "val", batch=16, image_size=32)
    boto3.client("s3").delete_object(Bucket="shards", Key=f"synth/{loader.shards[0]}")
    with pytest.raises(UserError, match=f"no shard {bucket}/val/synth-val-000000.tar"):
        list(loader.in_order())
