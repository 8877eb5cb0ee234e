"""Places: local paths, links, URLs through fsspec (memory, file, http, https, S3), and what is told when one cannot be reached."""

import datetime
import functools
import hashlib
import http.server
import ipaddress
import os
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager

import fsspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

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


def test_a_checksum_beside_the_file_is_verified(tmp_path):
    (tmp_path / "in.csv").write_bytes(PLAIN)
    sha256 = hashlib.sha256(PLAIN).hexdigest()
    checksum = tmp_path / "in.csv.sha256"
    for content in (f"{sha256}  in.csv\n", f"{sha256.upper()} *in.csv\n", sha256):
        checksum.write_text(content)
        assert labels({"path": "in.csv"}, root=tmp_path)[0] == ["positive", "negative"]
    checksum.write_text(f"{'0' * 64}  in.csv\n")
    with pytest.raises(SourceError, match=rf"in\.csv was altered: its sha256 is {sha256}, recorded beside it is 0{{64}}\."):
        read({"path": "in.csv"}, root=tmp_path)
    checksum.write_text("in.csv: fine\n")
    with pytest.raises(SourceError, match=r"in\.csv\.sha256 does not begin with a sha256"):
        read({"path": "in.csv"}, root=tmp_path)


def test_memory_and_file_urls(tmp_path):
    with fsspec.open("memory://source-places/in.csv", "wb") as stream:
        stream.write(PLAIN)
    (tmp_path / "in.csv").write_bytes(PLAIN)
    for url in ("memory://source-places/in.csv", f"file://{tmp_path}/in.csv"):
        found, facts = labels({"path": url}, root=tmp_path)
        assert found == ["positive", "negative"]
        assert facts.description == f"{url} (utf-8)"


@contextmanager
def serving(folder, context=None):
    """The address of a web server of its own over `folder`, behind TLS where a context is given."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_web(tmp_path):
    (tmp_path / "in.csv").write_bytes(PLAIN)
    with serving(tmp_path) as web:
        found, facts = labels({"path": f"{web}/in.csv?signature=secret"}, root=tmp_path)
        assert found == ["positive", "negative"]
        assert facts.description == f"{web}/in.csv (utf-8)"
        with pytest.raises(SourceError, match=r"other\.csv does not exist") as caught:
            read({"path": f"{web}/other.csv?signature=secret"}, root=tmp_path)
        assert "secret" not in str(caught.value)


def test_a_server_that_refuses_is_not_said_to_lack_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "send_head", lambda self: self.send_error(403))
    with serving(tmp_path) as web, pytest.raises(SourceError, match=r"in\.csv cannot be read \(.*403.*the credentials"):
        read({"path": f"{web}/in.csv"}, root=tmp_path)


def make_certificate(folder):
    """A key with a certificate for 127.0.0.1 that it signed itself; returns the two files."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "promptmill")])
    until = now + datetime.timedelta(hours=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, until)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return folder / "certificate.pem", folder / "key.pem"


READ_OVER_TLS = """
import sys
from pathlib import Path
from tests.data.source_reading import read
print(len(read({"path": sys.argv[1]}, root=Path())[0]), "rows")
"""


def test_the_web_behind_tls_and_a_certificate_that_nobody_vouches_for(tmp_path, repo_root):
    (tmp_path / "in.csv").write_bytes(PLAIN)
    certificate, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(tmp_path, context) as web:
        with pytest.raises(SourceError, match=r"in\.csv cannot be read \(.*certificate verify failed"):
            read({"path": f"{web}/in.csv"}, root=tmp_path)
        # A process of its own: what is trusted is read once, at import.
        environment = {**os.environ, "PYTHONPATH": str(repo_root), "SSL_CERT_FILE": str(certificate)}
        command = [sys.executable, "-c", READ_OVER_TLS, f"{web}/in.csv"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("2 rows\n", "")


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
