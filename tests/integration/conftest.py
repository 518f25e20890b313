"""One Postgres cluster per test process, one database per test that is as good as new: of our making, or OpenSend's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from opensend_milter.adapters.schema import facts, migrations
from tests.integration.emptied_database import Databases
from tests.integration.private_postgres import Cluster, Database, running_cluster

_TEMPLATE = "template_opensend"
_BESIDE_TEMPLATE = "template_beside"


@pytest.fixture(scope="session")
def _shared_cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _template(_shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the template once; return the password directory of its roles."""
    password_dir = tmp_path_factory.mktemp("roles") / "passwords"
    migrations.init(_shared_cluster.new_database(_TEMPLATE), password_dir)
    return password_dir


@pytest.fixture(scope="session")
def _beside_template(_shared_cluster: Cluster, _template: Path) -> Path:
    """Build the other template once; return the same directory, because roles belong to the cluster."""
    url = _shared_cluster.new_database(_BESIDE_TEMPLATE)
    with psycopg.connect(url, autocommit=True) as connection:
        facts.make(connection)
    migrations.migrate(url, _template)
    return _template


@pytest.fixture
def cluster(_shared_cluster: Cluster) -> Iterator[Cluster]:
    """The server itself, for faults: `stop`, `start`, `kill`, `pause`, `resume`. It runs again afterwards."""
    yield _shared_cluster
    _shared_cluster.resume()
    _shared_cluster.start()


@pytest.fixture(scope="session")
def _databases(_shared_cluster: Cluster, _template: Path) -> Iterator[Databases]:
    with closing(Databases(_shared_cluster, _TEMPLATE)) as databases:
        yield databases


@pytest.fixture
def database(cluster: Cluster, _databases: Databases, _template: Path) -> Iterator[Database]:
    """A database as `db init` leaves it, with the roles' passwords."""
    yield from _handed_out(_databases, cluster, _template)


@pytest.fixture(scope="session")
def _databases_beside(_shared_cluster: Cluster, _beside_template: Path) -> Iterator[Databases]:
    with closing(Databases(_shared_cluster, _BESIDE_TEMPLATE, prefix="beside")) as databases:
        yield databases


@pytest.fixture
def beside(cluster: Cluster, _databases_beside: Databases, _beside_template: Path) -> Iterator[Database]:
    """A database as OpenSend's own migrations and our `db migrate` leave it: for all that says `profile: opensend`."""
    yield from _handed_out(_databases_beside, cluster, _beside_template)


def _handed_out(databases: Databases, cluster: Cluster, password_dir: Path) -> Iterator[Database]:
    name, way_in = databases.take()
    yield Database(name, cluster, password_dir, way_in)
    cluster.resume()
    cluster.start()
    databases.give_back(name)
