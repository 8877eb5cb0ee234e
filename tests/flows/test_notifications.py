"""Who is told of what: real messages from a real Prefect server to a real HTTP receiver and a real mail receiver on this machine."""

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Failed

from flows.events import DATA_CHANGED, PROMOTED, REFUSED, ROLLED_BACK, announce, announce_champion, where_to_read
from tests.flows.deployed import TASK, Checkout, clear

SECRET, PASSWORD = "T0/B0/a-secret-path", "a-secret-word"


class Mail(socketserver.StreamRequestHandler):
    """As much of SMTP (RFC 5321) as takes one message."""

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            verb = line.split()[0].upper() if line.split() else b""
            if verb in (b"EHLO", b"HELO"):
                self.wfile.write(b"250-here\r\n250 AUTH PLAIN LOGIN\r\n")
            elif verb == b"AUTH":
                self.wfile.write(b"235 welcome\r\n")
            elif verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.mails.append(message_from_bytes(b"".join(lines), policy=policy.default))  # type: ignore[attr-defined]
                self.wfile.write(b"250 taken\r\n")
            elif verb == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 fine\r\n")


class Receivers:
    """A Slack-compatible webhook and a mail server on loopback, and what came."""

    def __init__(self) -> None:
        received: list[tuple[str, Any]] = []

        class Hook(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append((self.path, json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.received = received
        self._hook = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
        self._mail = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)
        self._mail.daemon_threads = True
        self.mails: list[Any] = []
        self._mail.mails = self.mails  # type: ignore[attr-defined]
        for server in (self._hook, self._mail):
            threading.Thread(target=server.serve_forever, daemon=True).start()

    @property
    def webhook(self) -> str:
        return f"http://127.0.0.1:{self._hook.server_port}/{SECRET}"

    @property
    def mail(self) -> str:
        return f"mailto://robot:{PASSWORD}@127.0.0.1:{self._mail.server_address[1]}?mode=insecure&from=robot@example.org&to=ada@example.org"

    def texts(self) -> list[str]:
        return [body["text"] for _, body in self.received]

    def close(self) -> None:
        for server in (self._hook, self._mail):
            server.shutdown()
            server.server_close()


@pytest.fixture
def receivers() -> Iterator[Receivers]:
    opened = Receivers()
    yield opened
    opened.close()


@pytest.fixture
def told(
    prefect_server: None,  # noqa: ARG001
    receivers: Receivers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[tuple[Checkout, SyncPrefectClient]]:
    """A checkout whose notifications are deployed, to the webhook all of them and to the mail server promotions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTMILL_WEBHOOK_URL", receivers.webhook)
    monkeypatch.setenv("PROMPTMILL_MAIL_URL", receivers.mail)
    checkout = Checkout(tmp_path, capsys)
    everything = ["failed", "refused", "approval_requested", "promoted", "rolled_back"]
    notifications = [
        {"on": everything, "webhook_variable": "PROMPTMILL_WEBHOOK_URL"},
        {"on": ["promoted"], "email_variable": "PROMPTMILL_MAIL_URL"},
    ]
    checkout.set(TASK, notifications=notifications)
    said = checkout.deploy()
    assert SECRET not in said
    assert PASSWORD not in said
    with get_client(sync_client=True) as client:
        yield checkout, client
        clear(client)


def wait_for(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found():
            return found()
        time.sleep(0.1)
    raise AssertionError("nothing came")


def test_people_are_told_with_links(
    told: tuple[Checkout, SyncPrefectClient], receivers: Receivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, client = told
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:word@mlflow.example.org:5000")
    flow(lambda: announce(DATA_CHANGED, "another_task", subject="earlier"), name="earlier")()  # its run is not what is told of below
    record = {"task": TASK, "version": 3, "previous_champion": 2, "already_champion": False}
    announce_champion(checkout.root, record, why="The gate let it pass.", run_id="0a1b")
    text = wait_for(receivers.texts)[0]
    assert text == (
        f"{TASK} version 3 is champion\nThe gate let it pass. Before: version 2.\n"
        f"Version: http://mlflow.example.org:5000/#/models/{TASK}/versions/3\n"
        "Card: http://mlflow.example.org:5000/get-artifact?path=card.html&run_uuid=0a1b"
    )
    assert receivers.received[0][0] == f"/{SECRET}"
    (mail,) = wait_for(lambda: receivers.mails)
    assert (mail["Subject"], mail["To"]) == (f"{TASK} version 3 is champion", "ada@example.org")
    assert "The gate let it pass." in str(mail)

    run = client.create_flow_run_from_deployment(client.read_deployment_by_name(f"retrain/{TASK}").id, name="the-run")
    client.set_flow_run_state(run.id, Failed(message="stage tune of tweet_sentiment: the loss is not finite"), force=True)
    failed = wait_for(lambda: [one for one in receivers.texts() if one.startswith("the-run: Failed")])[0]
    assert "stage tune of tweet_sentiment: the loss is not finite" in failed
    assert f"/runs/flow-run/{run.id}" in failed

    announce_champion(checkout.root, record, why="Complaints.", event=ROLLED_BACK)
    announce(REFUSED, TASK, subject=f"{TASK} version 4 was not promoted", lines=["accuracy: FAIL: 0.41 is below 0.50."])
    announce(PROMOTED, "privacy_policy_qa", subject="nobody asked to hear of this task")
    announce_champion(checkout.root, {**record, "already_champion": True}, why="Nothing new.")
    wait_for(lambda: len(receivers.texts()) >= 4)
    heads = [text.partition("\n")[0] for text in receivers.texts()]
    assert sorted(heads) == sorted(
        [f"{TASK} version 3 is champion", "the-run: Failed", f"{TASK} version 3 is champion again", f"{TASK} version 4 was not promoted"]
    )

    assert checkout.deploy().startswith("No change")
    monkeypatch.setenv("PROMPTMILL_WEBHOOK_URL", receivers.webhook + "-rotated")
    rotated = checkout.deploy()
    assert "~ block custom-webhook/promptmill-demo-promptmill-webhook-url\n    data: changed" in rotated
    assert SECRET not in rotated
    announce(PROMOTED, TASK, subject="after the rotation")
    wait_for(lambda: [path for path, _ in receivers.received if path == f"/{SECRET}-rotated"])


def test_without_an_mlflow_server_the_commands_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert where_to_read(tmp_path, TASK, 3) == [f"Version: promptmill show {TASK}@3", f"Why: promptmill why {TASK}@3"]
