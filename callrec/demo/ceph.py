"""How a Ceph RGW with one monitor and one OSD is set up in a folder, as any user, and up in 1.3 s.

The settings were measured on Ceph 16.2 of Debian 12.
"""

import http.client
import secrets
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from callrec.demo.process import Boot, Child, finish, free_port, until
from callrec.demo.servers import PROBE_SECONDS, Server

ObjectStore = Literal["memstore", "bluestore"]


class Ceph(Server):
    """Ceph RGW with one monitor and one OSD. `main` is the gateway; objects survive its death in either store.

    `day_seconds` is how long a day of a lifecycle rule lasts; None: a day. `room` is how many bytes the store holds;
    it takes them as they are used. The first user is "admin".
    """

    needs = ("monmaptool", "ceph-mon", "ceph", "ceph-osd", "radosgw", "radosgw-admin")

    def __init__(
        self, folder: Path, *, store: ObjectStore = "memstore", room: int = 4 << 30, day_seconds: int | None = None
    ) -> None:
        super().__init__(folder)
        self._store = store
        self._room = room
        self._day_seconds = day_seconds
        self.access_key, self.secret_key = _key_pair()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> Boot:
        monitor = f"v2:127.0.0.1:{free_port()}"
        cluster, disk = str(uuid.uuid4()), str(uuid.uuid4())
        for name in ("mon", "osd", "rgw", "crash"):
            (self.folder / name).mkdir()
        (self.folder / "ceph.conf").write_text(self._settings(cluster, monitor))
        monmap = str(self.folder / "monmap")
        creation = self.spawn("monmaptool", "--create", "--fsid", cluster, "--addv", "a", f"[{monitor}]", monmap)
        yield from finish(creation, "creating the Ceph monitor map")
        yield from finish(self._ceph("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap), "creating the Ceph monitor")
        mon = self._ceph("ceph-mon", "-i", "a", "-f")
        yield from self._register(disk, mon)
        creation = self._ceph("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        yield from finish(creation, "creating the Ceph OSD")
        self._ceph("ceph-osd", "-i", "0", "-f")

    def _register(self, disk: str, mon: Child) -> Boot:
        """`ceph osd new`: waits for the monitor by itself; tried again should it give up while that lives."""
        attempt = self._ceph("ceph", "osd", "new", disk)

        def registered() -> bool:
            nonlocal attempt
            if attempt.exit_status() not in (None, 0):
                attempt = self._ceph("ceph", "osd", "new", disk)
            return attempt.exit_status() == 0

        yield from until(registered, mon, "registering the Ceph OSD with its monitor")

    def launch(self) -> Boot:
        self.main = self._ceph("radosgw", "-n", "client.rgw", "-f")
        yield from until(self._answers, self.main, "starting the Ceph RGW")

    def furnish(self) -> Boot:
        yield from self.create_user("admin", self.access_key, self.secret_key)

    def create_users(self, names: Collection[str], boots: list[Boot]) -> dict[str, tuple[str, str]]:
        """Put the creation of users who own nothing into `boots`; returns access and secret key by name."""
        keys = {name: _key_pair() for name in names}
        # -1 buckets: a role may use what a bucket's policy opens to it, and create nothing.
        boots += [self.create_user(name, *pair, "--max-buckets=-1") for name, pair in keys.items()]
        return keys

    def create_user(self, name: str, access_key: str, secret_key: str, *options: str) -> Boot:
        identity = [f"--uid={name}", f"--display-name={name}", f"--access-key={access_key}", f"--secret={secret_key}"]
        child = self._ceph("radosgw-admin", "-n", "client.rgw", "user", "create", *identity, *options)
        yield from finish(child, f"creating the S3 user {name}")
        self._children.remove(child)

    def _ceph(self, name: str, *argv: str) -> Child:
        return self.spawn(name, "-c", str(self.folder / "ceph.conf"), *argv)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PROBE_SECONDS)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status < http.HTTPStatus.INTERNAL_SERVER_ERROR
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _settings(self, cluster: str, monitor: str) -> str:
        here = self.folder
        return f"""\
[global]
fsid = {cluster}
mon_host = [{monitor}]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
# Whoever reaches the monitor is on this machine; S3's own users are what the tests need.
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
keyring = /dev/null
# Without it the gateway loops on error -13 when there is no authentication.
ms_mon_client_mode = crc
run_dir = {here}
# The path of a socket in a deep directory would be too long.
admin_socket =
log_file = {here}/$name.log
crash_dir = {here}/crash
mon_data = {here}/mon
osd_data = {here}/osd
rgw_data = {here}/rgw
# One disk, one copy.
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
# A monitor alone has nobody to wait for: with the defaults the boot takes 12 s.
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
osd_objectstore = {self._store}
memstore_device_bytes = {self._room}
bluestore_block_size = {2 * self._room}
osd_fast_shutdown = false
osd_class_load_list = *
osd_class_default_list = *

[client.rgw]
# Without tcp_nodelay each listing and deletion waits 40 ms for an acknowledgement that the client puts off.
rgw_frontends = beast endpoint=127.0.0.1:{self.port} tcp_nodelay=1
rgw_override_bucket_index_max_shards = 1
rgw_lc_max_objs = 1
rgw_lc_debug_interval = {-1 if self._day_seconds is None else self._day_seconds}
"""


def _key_pair() -> tuple[str, str]:
    return secrets.token_hex(10).upper(), secrets.token_urlsafe(30)
