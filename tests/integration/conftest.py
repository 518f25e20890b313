"""One Postgres cluster per test process, one database per test that is as good as new."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from opensend_milter.adapters import migrations
from tests.integration.emptied_database import Databases
from tests.integration.private_postgres import Cluster, Database, running_cluster

_TEMPLATE = "template_opensend"


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


@pytest.fixture
def cluster(_shared_cluster: Cluster) -> Iterator[Cluster]:
    """The server itself, for faults: `stop`, `start`, `kill`, `pause`, `resume`. It runs again afterwards."""
    yield _shared_cluster
    _shared_cluster.resume()
    _shared_cluster.start()


@pytest.fixture(scope="session")
def _databases(_shared_cluster: Cluster, _template: Path) -> Databases:
    return Databases(_shared_cluster, _TEMPLATE)


@pytest.fixture
def database(cluster: Cluster, _databases: Databases, _template: Path) -> Iterator[Database]:
    """A database as `db init` leaves it, with the roles' passwords."""
    name = _databases.take()
    yield Database(name, cluster, _template)
    cluster.resume()
    cluster.start()
    _databases.give_back(name)
