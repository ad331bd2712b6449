"""The only module that imports Ray: how versions are deployed and asked, and the links of the cluster."""

import asyncio
import concurrent.futures
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import ray
from msgspec import Struct
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import HTTPOptions, ProxyLocation

from app.catalog import ApplicationSettings, Catalog, VersionSettings
from app.cluster.replica import Refusal, Replica, raised
from app.errors import StartupError, Unavailable
from app.serving.application import Question
from app.serving.card import ModelCard
from app.serving.opening import open_model
from app.serving.predictor import Prediction
from app.settings import Settings

NAMESPACE: Final = "fastai-now"
DIRECTORY: Final = "directory"  # the Serve application with the links
STRAGGLER: Final = 3.0  # seconds of silence after which another replica is asked
ATTEMPTS: Final = 10
DEPLOY_SECONDS: Final = 120.0
DIRECTORY_SECONDS: Final = 5.0
CPUS: Final = 0.5  # of a replica, for Ray's placement: so two on each core at most
UPSCALE_SECONDS: Final = 1.0
DOWNSCALE_SECONDS: Final = 20.0
REPLICA: Final = {
    "max_ongoing_requests": 8,
    "max_queued_requests": 64,
    "health_check_period_s": 1,
    "graceful_shutdown_timeout_s": 20,
    "graceful_shutdown_wait_loop_s": 0.2,
}
logger = logging.getLogger(__name__)


class Deployed(Struct, frozen=True):
    """A version on the cluster: the name of its Serve application, its settings and its card."""

    place: str
    version: VersionSettings
    card: ModelCard


class Table(Struct, frozen=True):
    """All that the fronts need to know: the applications, and where their versions are."""

    settings: Settings
    versions: Mapping[str, Deployed]
    applications: Mapping[str, ApplicationSettings]

    @property
    def catalog(self) -> Catalog:
        """The same as a settings file has it."""
        versions = {name: each.version for name, each in self.versions.items()}
        return Catalog(self.settings, versions, self.applications)


class Directory:
    """The links of the cluster. Serve keeps them with the deployment, and starts it again."""

    def __init__(self) -> None:
        self._table = b""

    def reconfigure(self, config: Mapping[str, str]) -> None:
        """Take another table (called by Serve)."""
        self._table = config["table"].encode()

    def table(self) -> bytes:
        """Return the table as JSON."""
        return self._table


class RemoteEndpoint:
    """A version on the cluster. A photo whose replica dies, or is silent, is given to another one."""

    def __init__(self, deployed: Deployed) -> None:
        self.card = deployed.card
        self.settings = deployed.version.settings
        self.place = deployed.place
        self._handle = serve.get_deployment_handle("Replica", deployed.place, _check_exists=False)

    async def predict(self, data: bytes, seconds: float) -> Prediction:
        """Answer a photo within `seconds`. Raises RequestError."""
        prediction: Prediction = await self._asked("predict", seconds, (data,), ())
        return prediction

    async def ask(self, question: Question, data: bytes, seconds: float, *arguments: str) -> Any:
        """Answer another question about a photo within `seconds`. Raises RequestError."""
        return await self._asked("ask", seconds, (question, data), arguments)

    async def _asked(self, method: str, seconds: float, first: tuple[Any, ...], rest: tuple[str, ...]) -> Any:
        end = time.monotonic() + seconds
        for attempt in range(ATTEMPTS):
            left = end - time.monotonic()
            if left <= 0:
                break
            response = getattr(self._handle, method).remote(*first, left, *rest)
            try:
                async with asyncio.timeout(min(left, STRAGGLER)):
                    answer = await response
            except (TimeoutError, asyncio.CancelledError) as error:
                response.cancel()  # nobody waits for it any more
                if isinstance(error, asyncio.CancelledError):
                    raise
                continue
            except RayActorError:  # the replica died: answering twice does no harm
                await asyncio.sleep(0.05 * attempt)
                continue
            except Exception as error:  # Ray's own, which have no common class
                logger.warning("%s cannot answer: %s", self.place, type(error).__name__)
                raise Unavailable("The model cannot answer now; try again shortly.", retry_after=2) from error
            if isinstance(answer, Refusal):
                raise raised(answer)
            return answer
        raise Unavailable("No replica of the model has answered; try again shortly.", retry_after=2)

    async def close(self) -> None:
        """Do nothing: `apply` deletes versions that are gone."""


def connect(address: str, node: str) -> None:
    """Connect this process to the cluster, by the node at an address. Raises StartupError."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(
            address,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
            _node_ip_address=node,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise StartupError(f"The cluster at {address} cannot be reached: {error}") from error
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def read_table(seconds: float = DIRECTORY_SECONDS) -> Table | None:
    """Return the links of the cluster; None while there are none, or while nobody answers."""
    try:
        handle = serve.get_deployment_handle("Directory", DIRECTORY, _check_exists=False)
        content = handle.table.remote().result(timeout_s=seconds)
    except Exception as error:  # Ray's own, which have no common class; the fronts keep the last table
        logger.debug("the directory does not answer: %s", error)
        return None
    return msgspec.json.decode(content, type=Table)


async def prove(catalog: Catalog, known: Table | None) -> dict[str, Deployed]:
    """Open each version of a catalog that is not on the cluster yet, here; return all. Raises StartupError.

    So a version that is not served is named in a sentence before anything changes.
    """
    deployed = {}
    for name, version in catalog.versions.items():
        place = _place(name, version)
        if known and (there := known.versions.get(name)) and there.place == place:
            deployed[name] = there
            continue
        model = await open_model(version.settings, lambda *_: None)
        deployed[name] = Deployed(place, version, model.card)
    return deployed


def apply(catalog: Catalog) -> None:
    """Deploy what is new in a catalog, relink, and delete the versions that are gone. Raises StartupError."""
    if not catalog.applications:
        raise StartupError("A cluster serves [applications], and the settings have none (docs/cluster.md).")
    serve.start(proxy_location=ProxyLocation.Disabled, http_options=HTTPOptions(host="127.0.0.1"))
    known = read_table()
    deployed = asyncio.run(prove(catalog, known))
    there = serve.status().applications
    for each in deployed.values():
        if each.place not in there:
            _run(_replicas(each.version), each.place)
    table = Table(catalog.settings, deployed, catalog.applications)
    text = msgspec.json.encode(table).decode()
    directory = serve.deployment(Directory).options(
        user_config={"table": text}, ray_actor_options={"num_cpus": 0}, health_check_period_s=1
    )
    _run(directory.bind(), DIRECTORY)
    gone = there.keys() - {DIRECTORY, *(each.place for each in deployed.values())}
    if gone:
        time.sleep(2.0)  # the fronts ask for the links twice a second
    for place in gone:
        serve.delete(place)


def _place(name: str, version: VersionSettings) -> str:
    """Return the name of a Serve application for a version: with other settings it is another one."""
    content = json.dumps(msgspec.to_builtins(version), sort_keys=True, default=sorted)
    return f"{name.replace('/', '-')}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def _replicas(version: VersionSettings) -> serve.Application:
    """Return the Serve application of a version, with its replicas."""
    least, most = version.replicas
    number: dict[str, Any] = {"num_replicas": least}
    if least != most:
        number = {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": most,
                "initial_replicas": max(1, least),
                "target_ongoing_requests": 2,
                "upscale_delay_s": UPSCALE_SECONDS,
                "downscale_delay_s": DOWNSCALE_SECONDS,
                "metrics_interval_s": 1,
                "look_back_period_s": 5,
            }
        }
    deployment = serve.deployment(Replica).options(ray_actor_options={"num_cpus": CPUS}, **REPLICA, **number)
    return deployment.bind(msgspec.to_builtins(version.settings))


def _run(application: serve.Application, name: str) -> None:
    """Run a Serve application, within a time limit that Serve lacks. Raises StartupError."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    try:
        pool.submit(serve.run, application, name=name, route_prefix=None).result(DEPLOY_SECONDS)
    except TimeoutError:
        raise StartupError(
            f"{name} was not deployed within {DEPLOY_SECONDS:.0f} s. Has a machine room for it?"
        ) from None
    except RuntimeError as error:
        raise StartupError(f"{name} cannot be deployed: {error}") from error
    finally:
        pool.shutdown(wait=False)


def status() -> dict[str, Any]:
    """Return the applications, their links, and the replicas of each version, by their states."""
    table, running = read_table(), serve.status().applications
    if table is None:
        return {"applications": {}, "versions": {}, "machines": _machines()}
    versions = {}
    for name, each in table.versions.items():
        deployments = running[each.place].deployments if each.place in running else {}
        states = {
            str(state): count for one in deployments.values() for state, count in one.replica_states.items()
        }
        versions[name] = {"replicas": states, "wanted": list(each.version.replicas)}
    return {
        "applications": msgspec.to_builtins(table.applications),
        "versions": versions,
        "machines": _machines(),
    }


def _machines() -> list[str]:
    return sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])


def disconnect() -> None:
    """Leave the cluster."""
    ray.shutdown()
