"""A PostgreSQL server of its own: in one folder, on a free port, with a password."""

import os
import pwd
import secrets
import subprocess
from pathlib import Path

import pytest

from tests.cluster.servers import free_port, require_root

BINARIES = "/usr/lib/postgresql/*/bin/initdb"  # Debian keeps them off the PATH


class Postgres:
    """Started with the object. ``environment`` lets libpq find the password, so that no URI has to hold it."""

    def __init__(self, folder: Path) -> None:
        require_root()
        found = sorted(Path("/").glob(BINARIES.lstrip("/")))
        if not found:
            pytest.skip("no PostgreSQL: `make test-cluster` installs the system package postgresql by apt")
        self.binaries = found[-1].parent
        self.user = "glefld"
        self.port = free_port()
        password = secrets.token_hex(16)
        passwords = folder / "pgpass"
        passwords.write_text(f"127.0.0.1:{self.port}:*:{self.user}:{password}\n")
        passwords.chmod(0o600)
        self.environment = {"PGPASSFILE": str(passwords)}

        # The server refuses to be root. Its user has to reach its folder.
        folder.chmod(0o711)
        self.data = folder / "postgres"
        self.data.mkdir(mode=0o700)
        first = self.data / "password"
        first.write_text(password)
        owner = pwd.getpwnam("postgres")
        for path in (self.data, first):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        cluster = self.data / "cluster"
        self._run("initdb", "-A", "scram-sha-256", "-U", self.user, "--pwfile", first, "-D", cluster)
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.data}"
        self._run("pg_ctl", "-w", "-D", cluster, "-l", self.data / "log", "-o", options, "start")

    def create_database(self, name: str) -> str:
        """Its SQLAlchemy URI, without the password."""
        command = [self.binaries / "createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", self.user, name]
        subprocess.run(command, check=True, env={**os.environ, **self.environment}, timeout=60)
        return f"postgresql+psycopg2://{self.user}@127.0.0.1:{self.port}/{name}"

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.data / "cluster", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str | Path) -> None:
        as_postgres = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups")
        command = [*as_postgres, self.binaries / program, *arguments]
        # Into a file and not a pipe, which the server would keep open for as long as it runs.
        with (self.data / f"{program}.out").open("ab") as output:
            subprocess.run(command, check=True, stdout=output, stderr=output, cwd=self.data, timeout=60)
