"""Places: local paths, links, URLs through fsspec (memory, file, http, S3), and what is told when one cannot be reached."""

import functools
import hashlib
import http.server
import os
import sys
import threading

import fsspec
import pytest

from pipeline.errors import SourceError
from tests.data.source_reading import read

PLAIN = b"label,text\npositive,good\nnegative,bad\n"


def labels(source, **options):
    rows, facts = read(source, **options)
    assert facts.sha256 == hashlib.sha256(PLAIN).hexdigest()
    assert facts.size == len(PLAIN)
    return rows["label"].tolist(), facts


def test_an_absolute_path_a_path_upwards_and_a_link_are_read(tmp_path):
    """params.yaml belongs to the one who runs it, so its paths may lead anywhere; what was read is in the sha256."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "workspace").mkdir()
    (tmp_path / "outside" / "in.csv").write_bytes(PLAIN)
    (tmp_path / "workspace" / "link.csv").symlink_to(tmp_path / "outside" / "in.csv")
    for path in (str(tmp_path / "outside" / "in.csv"), "../outside/in.csv", "link.csv"):
        assert labels({"path": path}, root=tmp_path / "workspace")[0] == ["positive", "negative"]


def test_a_dangling_link_and_a_link_to_itself_do_not_exist(tmp_path):
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "nothing.csv")
    with pytest.raises(SourceError, match="does not exist"):
        read({"path": "dangling.csv"}, root=tmp_path)


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "in.csv")
    with pytest.raises(SourceError, match="is a device, pipe or socket"):
        read({"path": "in.csv"}, root=tmp_path)
    with pytest.raises(SourceError, match="is a device, pipe or socket"):
        read({"path": "/dev/zero", "format": "csv"}, root=tmp_path)


def test_memory_and_file_urls(tmp_path):
    with fsspec.open("memory://source-places/in.csv", "wb") as stream:
        stream.write(PLAIN)
    (tmp_path / "in.csv").write_bytes(PLAIN)
    for url in ("memory://source-places/in.csv", f"file://{tmp_path}/in.csv"):
        found, facts = labels({"path": url}, root=tmp_path)
        assert found == ["positive", "negative"]
        assert facts.description == f"{url} (utf-8)"


@pytest.fixture
def web(tmp_path):
    """A web server of its own over `tmp_path`."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_web(tmp_path, web):
    (tmp_path / "in.csv").write_bytes(PLAIN)
    found, facts = labels({"path": f"{web}/in.csv?signature=secret"}, root=tmp_path)
    assert found == ["positive", "negative"]
    assert facts.description == f"{web}/in.csv (utf-8)"
    with pytest.raises(SourceError, match=r"other\.csv does not exist") as caught:
        read({"path": f"{web}/other.csv?signature=secret"}, root=tmp_path)
    assert "secret" not in str(caught.value)


def test_a_web_server_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match=r"cannot be read \(.*Check the address, the network and the credentials"):
        read({"path": "http://127.0.0.1:1/in.csv"}, root=tmp_path)


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of a real S3 server (moto's)."""
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    server_module = pytest.importorskip("moto.server", reason="moto's S3 server is not installed")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="rows")
    yield client
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_s3(bucket, tmp_path):
    bucket.put_object(Bucket="rows", Key="a/in.csv", Body=PLAIN)
    assert labels({"path": "s3://rows/a/in.csv"}, root=tmp_path)[0] == ["positive", "negative"]
    for path, words in {
        "s3://rows/a/other.csv": "does not exist",
        "s3://none/in.csv": "does not exist",
        "s3://rows/a": "is a folder",
    }.items():
        with pytest.raises(SourceError, match=words):
            read({"path": path, "format": "csv"}, root=tmp_path)


def test_what_fsspec_lacks_is_named_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3a", raising=False)
    with pytest.raises(SourceError, match=r"pip install promptmill\[s3\]"):
        read({"path": "s3://rows/in.csv"}, root=tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SourceError, match=r"gcsfs.*Install the package it names"):
        read({"path": "gs://rows/in.csv"}, root=tmp_path)


def test_an_unknown_protocol(tmp_path):
    with pytest.raises(SourceError, match=r"nosuch://rows/in.csv is no URL that fsspec can open"):
        read({"path": "nosuch://rows/in.csv"}, root=tmp_path)
