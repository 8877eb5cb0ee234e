"""The lock on a real Prefect server: one holder at a time, and nobody else's business where the server is embedded."""

import threading
import time

import pytest

from flows import promotion_lock
from pipeline.errors import RegistryError


@pytest.mark.usefixtures("prefect_server")
def test_one_holds_the_slot_and_the_other_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str] = []

    def second() -> None:
        with promotion_lock.prefect_lock("demo"):
            held.append("second")

    with promotion_lock.prefect_lock("demo") as name:
        assert name.startswith("prefect:")
        with promotion_lock.prefect_lock("another task") as other:
            assert other == name
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(1.0)
        held.append("first")
    waiting.join(timeout=60)
    assert held == ["first", "second"]

    monkeypatch.setattr(promotion_lock, "LOCK_SECONDS", 0.5)
    with (
        promotion_lock.prefect_lock("demo"),
        pytest.raises(
            RegistryError,
            match=r"promptmill-promotion-demo was not to be had.*prefect gcl update promptmill-promotion-demo --active-slots 0",
        ),
        promotion_lock.prefect_lock("demo"),
    ):
        pass


@pytest.mark.usefixtures("prefect_server")
def test_what_fails_under_the_lock_keeps_its_own_error() -> None:
    with pytest.raises(TimeoutError, match="mine"), promotion_lock.prefect_lock("demo"):
        raise TimeoutError("mine")


@pytest.mark.usefixtures("prefect_server")
def test_only_a_server_that_the_user_names_gives_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert promotion_lock.shared_lock() is promotion_lock.prefect_lock
    monkeypatch.setenv(promotion_lock.EMBEDDED_VARIABLE, "1")
    assert promotion_lock.shared_lock() is None
