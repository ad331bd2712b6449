"""More than it can do: a real server, an open loop on loopback, bounded in count and time."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from benchmarks.load import Client
from tests.conftest import SECONDS, ServerProcess, image_bytes, peak_memory

pytestmark = [pytest.mark.alone, pytest.mark.slow]
PHOTO = image_bytes("a00_224x224.jpg")
FLOOD_SECONDS = 4.0


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe") / "longest"


@pytest.fixture(scope="module")
def demo(start_server: Callable[..., ServerProcess], probe: Path) -> ServerProcess:
    """A ready server of the demo, with pictures so large that a client in Python can flood it."""
    server = start_server(module="tests.instrumented", PROBE=str(probe), APP_IMAGE_SIZE="448")
    server.wait_for("ready after")
    assert server.post(PHOTO).status_code == 200  # the first photo takes memory that is kept
    return server


def runnable_seconds(server: ServerProcess) -> float:
    """Seconds that the event loop and this thread were ready to run while no core was free (Linux)."""
    loop, own = f"{server.process.pid}/task/{server.process.pid}", f"self/task/{threading.get_native_id()}"
    files = [Path(f"/proc/{thread}/schedstat") for thread in (loop, own)]
    return sum(int(file.read_text().split()[1]) / 1e9 for file in files if file.exists())


class Flood:
    """Several times as many photos a second as the server answers, and somebody who asks for its health."""

    def __init__(self, server: ServerProcess) -> None:
        alone = Client(server.url, PHOTO)
        closed = asyncio.run(alone.closed(4, 2.0))
        self.rate = min(10 * len(alone.answers["200"]) / closed, 150.0)  # more is beyond the client itself
        self.usual = sorted(alone.answers["200"])[len(alone.answers["200"]) // 2]
        self.client = Client(server.url, PHOTO)
        self._server, self._over, self.health = server, threading.Event(), list[float]()
        nurse = threading.Thread(target=self._look)
        nurse.start()
        asyncio.run(self.client.opened(self.rate, FLOOD_SECONDS, quick=3 * self.usual))
        self._over.set()
        nurse.join(SECONDS)

    def _look(self) -> None:
        while not self._over.wait(0.01):
            start, waited = time.perf_counter(), runnable_seconds(self._server)
            assert requests.get(f"{self._server.url}/healthz", timeout=SECONDS).status_code == 200
            own = time.perf_counter() - start - (runnable_seconds(self._server) - waited)
            self.health.append(own)

    @property
    def answered(self) -> list[float]:
        """The seconds that those took who got an answer."""
        return sorted(self.client.answers["200"])


@pytest.fixture(scope="module")
def flood(demo: ServerProcess) -> Flood:
    return Flood(demo)


@pytest.mark.fault("L01")
def test_in_a_flood_each_gets_an_answer_or_is_told_when_to_try_again(flood: Flood) -> None:
    assert flood.client.answers.keys() == {"200", "503"}  # none lost, none without Retry-After
    assert sum(map(len, flood.client.answers.values())) == int(flood.rate * FLOOD_SECONDS)
    assert json.loads(flood.client.sample)["result"]


@pytest.mark.fault("L01")
def test_admitted_photos_are_answered_soon_and_the_others_refused_at_once(flood: Flood) -> None:
    assert flood.answered[len(flood.answered) * 95 // 100] < 4.0  # two seconds, on a machine of one's own
    refused = sorted(flood.client.answers["503"])
    assert refused[len(refused) // 2] < flood.answered[len(flood.answered) // 2] / 2


@pytest.mark.fault("L05")
def test_the_health_is_answered_within_a_tenth_of_a_second_during_the_flood(flood: Flood) -> None:
    """Without the time for which a busy machine let the server wait for a core."""
    assert len(flood.health) > 20
    assert sorted(flood.health)[len(flood.health) * 99 // 100 - 1] < 0.1


@pytest.mark.fault("H20", "L05")
def test_no_turn_of_the_event_loop_is_long_during_the_flood(flood: Flood, probe: Path) -> None:
    assert float(probe.read_text()) < 20  # ms of CPU time


@pytest.mark.fault("L04")
def test_after_the_flood_answers_are_as_quick_as_before(flood: Flood) -> None:
    assert flood.client.recovery < 5.0


@pytest.mark.fault("L04")
def test_a_flood_takes_no_more_memory_than_the_one_before(demo: ServerProcess, flood: Flood) -> None:
    peaks = []
    for _ in range(2):
        before = resident(demo) * 1000
        with peak_memory(demo) as grown:
            Flood(demo)
            peaks.append(before + grown())
    assert peaks[1] < peaks[0] + 32_000


def resident(server: ServerProcess) -> int:
    """MB of memory that a server has now (Linux only)."""
    status = Path(f"/proc/{server.process.pid}/status")
    if not status.exists():
        pytest.skip("the memory of another process cannot be measured here")
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
    assert found
    return int(found[1]) // 1000


@pytest.mark.fault("U27", "L04", "P20")
@pytest.mark.parametrize("name", ["a00_224x224.jpg", "a05_640x480.jpg", "b00_12mp_4000x3000.jpg"])
def test_the_memory_of_a_flood_comes_back(demo: ServerProcess, name: str) -> None:
    before = resident(demo)
    with peak_memory(demo) as grown:
        client = Client(demo.url, image_bytes(name))
        asyncio.run(client.closed(32, 1.0))
        assert client.answers.keys() <= {"200", "503"}
        assert client.answers["200"]
        assert grown() < 250_000
    deadline = time.monotonic() + SECONDS
    while resident(demo) - before > 20 and time.monotonic() < deadline:
        requests.get(f"{demo.url}/healthz", timeout=SECONDS)
    assert resident(demo) - before <= 20
