"""MLflow's own server with authentication: PostgreSQL behind it, artifacts on object storage."""

import dataclasses
import importlib.util
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import requests

from tests.cluster.postgres import Postgres
from tests.cluster.servers import Server, free_port

START_SECONDS = 120.0  # both databases are migrated first


@dataclasses.dataclass(frozen=True)
class Login:
    """Who asks a tracking server."""

    user: str
    password: str

    @property
    def environment(self) -> dict[str, str]:
        return {"MLFLOW_TRACKING_USERNAME": self.user, "MLFLOW_TRACKING_PASSWORD": self.password}


class TrackingServer:
    """Started with the object; ``environment`` is what its clients set. ``artifacts`` is an s3:// prefix."""

    def __init__(
        self, folder: Path, postgres: Postgres, artifacts: str, storage: Mapping[str, str], login: Login
    ) -> None:
        for module in ("boto3", "flask_wtf", "psycopg2"):
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"no Python package {module}, which the tracking server needs: run `make setup`")
        self.artifacts = artifacts
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.user, self.password = login.user, login.password
        self.environment = {"MLFLOW_TRACKING_URI": self.uri, **login.environment}
        config = folder / "basic_auth.ini"
        config.write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {postgres.create_database('auth')}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        self.log = folder / "mlflow.log"
        self.server = Server(
            [
                *(Path(sys.executable).with_name("mlflow"), "server", "--app-name", "basic-auth"),
                *("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"),
                *("--artifacts-destination", artifacts),
            ],
            self.log,
            {
                **postgres.environment,
                **storage,
                "MLFLOW_BACKEND_STORE_URI": postgres.create_database("mlflow"),
                "MLFLOW_S3_ENDPOINT_URL": storage["AWS_ENDPOINT_URL"],
                "MLFLOW_AUTH_CONFIG_PATH": str(config),
                "MLFLOW_AUTH_ADMIN_USERNAME": self.user,
                "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
        )
        self.start()

    def start(self) -> None:
        """Also again, on the same port."""
        self.server.start(self.is_up, START_SECONDS)

    def is_up(self) -> bool:
        try:
            return requests.get(f"{self.uri}/health", timeout=5).ok
        except requests.RequestException:
            return False
