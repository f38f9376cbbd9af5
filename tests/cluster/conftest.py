"""Real servers for the tests in this folder, one of each for the whole run.

Ray's workers inherit the environment that Ray is started in, so ``ray_cluster`` is here preceded by all that is in it.
"""

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.config import conf

from tests import browser as browsers
from tests.cluster.ceph import Ceph
from tests.cluster.fault_proxy import FaultProxy
from tests.cluster.forks import Forks
from tests.cluster.mlflow_server import Login, TrackingServer
from tests.cluster.object_store import ObjectStore
from tests.cluster.postgres import Postgres

READ_SECONDS = 3  # after which a stalled read is tried again: short, since tests wait for it


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """Not below pytest's own folder, which only root can enter: PostgreSQL runs as a user of its own."""
    folder = Path(tempfile.mkdtemp(prefix="glefld-servers-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def object_store(servers_folder: Path) -> Iterator[ObjectStore]:
    """Ceph's gateway; nothing of it is in this process's environment yet (see ``store``)."""
    folder = servers_folder / "ceph"
    folder.mkdir()
    ceph = Ceph(folder)
    proxy = FaultProxy(ceph.endpoint, ceph.keys)
    yield ObjectStore(proxy.endpoint, ceph.endpoint, ceph.keys, proxy)
    proxy.stop()
    ceph.stop()


@pytest.fixture(scope="session")
def login() -> Login:
    """Who the tracking server's clients are, in this process's environment from now on."""
    login = Login("admin", secrets.token_hex(16))
    os.environ.update(login.environment)
    return login


@pytest.fixture(scope="session")
def ray_cluster(store: ObjectStore, login: Login, ray_cluster: None) -> None:
    """The whole run's Ray, whose workers know the object store and the tracking server's password."""


@pytest.fixture(scope="session")
def tracking_server(
    servers_folder: Path, object_store: ObjectStore, login: Login
) -> Iterator[TrackingServer]:
    """MLflow with authentication; ``environment`` is what its clients need."""
    folder = servers_folder / "mlflow"
    folder.mkdir()
    servers_folder.chmod(0o711)
    postgres = Postgres(folder)
    storage = object_store.keys.environment(object_store.direct)
    server = TrackingServer(folder, postgres, f"{object_store.bucket()}/artifacts", storage, login)
    yield server
    server.server.stop()
    postgres.stop()


@pytest.fixture(scope="session")
def store(object_store: ObjectStore) -> ObjectStore:
    """The object store, as this process's environment names it from now on."""
    os.environ.update(object_store.environment)
    options = {"config_kwargs": {"read_timeout": READ_SECONDS}}
    os.environ["FSSPEC_S3"] = json.dumps(options)
    conf["s3"] = options  # the variable was read when fsspec was imported
    return object_store


@pytest.fixture(scope="session")
def tracking(store: ObjectStore, tracking_server: TrackingServer) -> TrackingServer:
    """The tracking server, as this process's environment names it from now on; artifacts are on the object store."""
    os.environ.update(tracking_server.environment)
    return tracking_server


@pytest.fixture(scope="session")
def forks(store: ObjectStore) -> Iterator[Forks]:
    """Jobs as processes that start at once."""
    made = Forks(os.environ)
    yield made
    made.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[browsers.Browser]:
    """A browser; each page that is opened in it replaces the one before."""
    with browsers.browser() as made:
        yield made
