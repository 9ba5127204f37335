"""Makes a bucket ready for a federation on MinIO: the bucket, and a user for the server and for each client."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from lwfed import environment
from lwfed.store.policies import client_policy, server_policy, split_uri
from lwfed.store.s3.client import Access, Connection, RefusedError
from lwfed.types.errors import LwfedError, SpecError, UnreachableError

T = TypeVar("T")

SERVER = "server"
ABORT_DAYS = 7
TIMEOUT_S = 15.0
TRIES = 3
ADMINISTRATOR = "set MINIO_ROOT_USER and MINIO_ROOT_PASSWORD to those that the server was started with"


@dataclass(frozen=True)
class User:
    """A user of the store.

    Attributes:
        who: `server`, or a client's id.
        access_key: Its name at the server.
        secret_key: Its secret; None where it exists already and its secret stands.
        made: Whether it is new.
    """

    who: str
    access_key: str
    secret_key: str | None
    made: bool


@dataclass(frozen=True)
class Provisioned:
    """What was done.

    Attributes:
        bucket_made: Whether the bucket is new.
        notes: What the server could not do.
        users: Server first, then the clients.
    """

    bucket_made: bool
    notes: tuple[str, ...]
    users: tuple[User, ...]


def access_key_of(uri: str, who: str) -> str:
    """Names a user, alike each time and unlike that of any other store."""
    mark = hashlib.sha256(f"{uri.rstrip('/')} {who}".encode()).hexdigest()[:8]
    return f"lwfed-{who}-{mark}"


def provision(
    uri: str,
    *,
    clients: Sequence[str],
    admin: Access,
    versioning: bool = False,
    rotate: bool = False,
    known: Mapping[str, str] | None = None,
) -> Provisioned:
    """Makes the bucket and the users, or fixes what is there; doing it again changes nothing.

    Args:
        uri: The store.
        clients: Ids.
        admin: Where the server is, and MinIO's administrator.
        versioning: Keep what is overwritten or deleted.
        rotate: Give new secrets to users that exist.
        known: Secrets that were given out before; a user that has gone is made again with its own.

    Raises:
        SpecError: No administrator is named.
        UnreachableError: The server does not answer, or does not accept the administrator.
    """
    bucket, _ = split_uri(uri)
    policies = {SERVER: server_policy(uri), **{client: client_policy(uri, client) for client in clients}}
    if admin.access_key is None or admin.secret_key is None:
        raise SpecError("no administrator is named", remedy="set MINIO_ROOT_USER and MINIO_ROOT_PASSWORD")
    connection = Connection(uri, bucket, access=admin, remedy=ADMINISTRATOR)
    made = _make_bucket(connection)
    notes = _arrange(connection, versioning=versioning)
    server = _admin(admin, connection)
    existing = set(json.loads(_ask(server.user_list, connection) or "{}"))
    users = []
    for who, policy in policies.items():
        name = access_key_of(uri, who)
        secret = None
        if name not in existing or rotate:
            kept = None if rotate else (known or {}).get(who)
            secret = kept or secrets.token_urlsafe(30)
            _ask(partial(server.user_add, name, secret), connection)
        _ask(partial(server.policy_add, name, policy=policy), connection)
        _ask(partial(server.policy_set, name, user=name), connection)
        users.append(User(who=who, access_key=name, secret_key=secret, made=name not in existing))
    return Provisioned(bucket_made=made, notes=tuple(notes), users=tuple(users))


def _make_bucket(connection: Connection) -> bool:
    """Makes a bucket that is not there; returns whether it did."""
    bucket = connection.bucket
    listed = connection.ask(lambda c: c.list_buckets(), about="to list buckets")
    if any(item["Name"] == bucket for item in listed.get("Buckets", ())):
        return False
    connection.ask(lambda c: c.create_bucket(Bucket=bucket), about=f"to make the bucket {bucket}")
    return True


def _arrange(connection: Connection, *, versioning: bool) -> list[str]:
    """Sets what the bucket does by itself; returns notes of what the server cannot do."""
    bucket = connection.bucket
    rule = {
        "ID": "lwfed-unfinished-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABORT_DAYS},
    }
    notes = []
    try:
        connection.ask(
            lambda c: c.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]}),
            about="to remove unfinished uploads",
            expected=(400, 403, 404, 405, 501),
        )
    except RefusedError as refused:
        notes.append(f"the server takes no rule for unfinished uploads ({refused}); MinIO removes them after a day")
    if versioning:
        connection.ask(
            lambda c: c.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}),
            about="to keep versions",
        )
    return notes


def _admin(admin: Access, connection: Connection) -> Any:
    try:
        import urllib3
        from minio import MinioAdmin
        from minio.credentials import StaticProvider
    except ImportError:
        raise SpecError(
            "users of MinIO are made with its own library, which is not installed",
            remedy="pip install 'lwfed[kubeflow]', or make them by hand from what `lwfed store policy` prints",
        ) from None
    address = urlsplit(connection.endpoint)
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=TIMEOUT_S, read=TIMEOUT_S),
        retries=urllib3.Retry(total=TRIES, backoff_factor=0.5, status_forcelist=[500, 502, 503, 504]),
        cert_reqs="CERT_REQUIRED",
        ca_certs=admin.ca_bundle or environment.ca_bundle(),
    )
    return MinioAdmin(
        endpoint=address.netloc,
        credentials=StaticProvider(admin.access_key, admin.secret_key),
        secure=address.scheme == "https",
        http_client=pool,
    )


def _ask(work: Callable[[], T], connection: Connection) -> T:
    """Asks MinIO's administration; its errors get a remedy."""
    from minio.error import MinioAdminException
    from urllib3.exceptions import HTTPError

    try:
        return work()
    except MinioAdminException as error:
        raise _refused(str(error), connection) from None
    except (HTTPError, ValueError) as error:  # no JSON: not MinIO
        raise UnreachableError(
            f"the administration of {connection.endpoint} does not answer: {error}",
            remedy="start it; for a server that is not MinIO make users by hand from what `lwfed store policy` prints",
        ) from None


def _refused(text: str, connection: Connection) -> LwfedError:
    if "AccessDenied" in text or "InvalidAccessKeyId" in text or "SignatureDoesNotMatch" in text:
        return UnreachableError(
            f"{connection.endpoint} does not accept the administrator",
            remedy=ADMINISTRATOR,
        )
    return UnreachableError(
        f"the administration of {connection.endpoint} refuses: {text}",
        remedy="for a server that is not MinIO make users by hand from what `lwfed store policy` prints",
    )
