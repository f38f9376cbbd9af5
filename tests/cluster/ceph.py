"""An S3 server: Ceph's gateway over one monitor and one OSD on a file, all in one folder."""

import dataclasses
import json
import secrets
import subprocess
import uuid
from pathlib import Path

import botocore.session

from tests.cluster.servers import Server, answers, free_port, require_programs, require_root, wait_until

OSD_BYTES = 4 << 30  # a sparse file


@dataclasses.dataclass(frozen=True)
class Keys:
    """Who asks an S3 server."""

    access: str
    secret: str

    def environment(self, endpoint: str) -> dict[str, str]:
        """How a user gives them, with the endpoint, to every job."""
        return {
            "AWS_ACCESS_KEY_ID": self.access,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self, endpoint: str):
        return botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=endpoint,
            aws_access_key_id=self.access,
            aws_secret_access_key=self.secret,
        )


class Ceph:
    """Started with the object; ``endpoint`` and ``keys`` are what a client needs."""

    def __init__(self, folder: Path) -> None:
        require_root()
        require_programs("radosgw", "radosgw", "radosgw-admin")
        require_programs("ceph-mon", "ceph-mon", "monmaptool")
        require_programs("ceph-osd", "ceph-osd")
        self.folder = folder
        self.config = folder / "ceph.conf"
        self.monitor_port, self.port = free_port(), free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.keys = Keys(secrets.token_hex(10), secrets.token_hex(20))
        self.servers: list[Server] = []
        self._configure()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for server in reversed(self.servers):
            server.stop()

    def _configure(self) -> None:
        for name in ("mon", "osd", "rgw", "run"):
            (self.folder / name).mkdir()
        self.fsid = str(uuid.uuid4())
        self.config.write_text(f"""[global]
fsid = {self.fsid}
mon host = v2:127.0.0.1:{self.monitor_port}
mon initial members = a
public network = 127.0.0.0/8
keyring = {self.folder}/keyring
run dir = {self.folder}/run
admin socket = {self.folder}/run/$name.$pid.asok
log file = {self.folder}/$name.log
crash dir = {self.folder}/run
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
[mon.a]
mon data = {self.folder}/mon
[osd.0]
osd data = {self.folder}/osd
osd objectstore = bluestore
bluestore block size = {OSD_BYTES}
bluestore block create = true
osd memory target = 939524096
[client.rgw]
rgw data = {self.folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{self.port}
rgw thread pool size = 32
""")

    def _run(self, *command: str | Path, give: str | None = None) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            input=give,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with status {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def _daemon(self, program: str, *arguments: str) -> Server:
        server = Server([program, "-f", "-c", self.config, *arguments], self.folder / f"{program}.out")
        self.servers.append(server)
        return server

    def _start(self) -> None:
        keyring, monmap = self.folder / "keyring", self.folder / "monmap"
        everything = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
        self._run("ceph-authtool", "-C", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        for name in ("client.admin", "client.rgw"):
            self._run("ceph-authtool", keyring, "--gen-key", "-n", name, *everything)
        address = f"[v2:127.0.0.1:{self.monitor_port}]"
        self._run("monmaptool", "--create", "--clobber", "--addv", "a", address, "--fsid", self.fsid, monmap)
        self._run(
            "ceph-mon", "-c", self.config, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring
        )
        self._daemon("ceph-mon", "-i", "a").start(lambda: answers(self.monitor_port))

        osd = str(uuid.uuid4())
        key = self._run("ceph-authtool", "--gen-print-key").strip()
        ceph = ("ceph", "-c", self.config, "--connect-timeout", "30")
        self._run(*ceph, "osd", "new", osd, "-i", "-", give=json.dumps({"cephx_secret": key}))
        self._run("ceph-authtool", "-C", self.folder / "osd/keyring", "-n", "osd.0", "--add-key", key)
        files = ("--osd-uuid", osd, "--keyring", self.folder / "osd/keyring")
        self._run("ceph-osd", "-c", self.config, "-i", "0", "--mkfs", *files)
        self._daemon("ceph-osd", "-i", "0", "--keyring", f"{self.folder}/osd/keyring").start(
            lambda: '"num_up_osds":1' in self._run(*ceph, "osd", "stat", "-f", "json").replace(" ", "")
        )
        self._daemon("radosgw", "-n", "client.rgw").start(lambda: answers(self.port))
        admin = ("radosgw-admin", "-c", self.config, "-n", "client.rgw")
        user = ("--uid=glefld", "--display-name=glefld")
        keys = (f"--access-key={self.keys.access}", f"--secret-key={self.keys.secret}")
        self._run(*admin, "user", "create", *user, *keys)
        client = self.keys.client(self.endpoint)
        wait_until(lambda: "Buckets" in client.list_buckets(), "the gateway")
