"""Sets up a bucket on MinIO for a federation: the bucket, and a user for the server and each client; revokes users."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from lwfed import environment
from lwfed.store.policies import policies_of, split_uri
from lwfed.store.s3.access import Access
from lwfed.store.s3.client import Connection, RefusedError
from lwfed.types.errors import NotFoundError, SpecError, UnreachableError

T = TypeVar("T")

ABORT_DAYS = 7
TIMEOUT_S = 15.0
TRIES = 3
DISABLED = "disabled"
BY_HAND = "on a server other than MinIO, create users by hand with `lwfed store policy`"
ADMINISTRATOR = "set MINIO_ROOT_USER and MINIO_ROOT_PASSWORD to the server's own"


@dataclass(frozen=True)
class User:
    """A user of the store.

    Attributes:
        who: `server`, or a client's id.
        access_key: Its name on the server.
        secret_key: Its secret; None if it existed already and its secret stays.
        made: Whether it is new.
        revoked: Whether it may do nothing until it is given a new secret.
    """

    who: str
    access_key: str
    secret_key: str | None
    made: bool
    revoked: bool = False


@dataclass(frozen=True)
class Provisioned:
    """The result of `provision`.

    Attributes:
        bucket_made: Whether the bucket is new.
        notes: Settings that the server does not support.
        users: Server first, then the clients.
    """

    bucket_made: bool
    notes: tuple[str, ...]
    users: tuple[User, ...]


def access_key_of(uri: str, who: str) -> str:
    """Returns a user's name: always the same for a store, and different from that of any other store."""
    mark = hashlib.sha256(f"{uri.rstrip('/')} {who}".encode()).hexdigest()[:8]
    return f"lwfed-{who}-{mark}"


def provision(
    uri: str,
    *,
    clients: Sequence[str],
    admin: Access,
    versioning: bool = False,
    rotate: Collection[str] = (),
    readmit: bool = False,
    known: Mapping[str, str] | None = None,
) -> Provisioned:
    """Creates the bucket and the users, or repairs existing ones; a second call changes nothing.

    Args:
        uri: The store.
        clients: The clients' ids.
        admin: The server's endpoint and MinIO's administrator.
        versioning: Keep objects that are overwritten or deleted.
        rotate: Who gets a new secret: clients' ids, or `server`.
        readmit: Give those of them that were revoked a new secret, too.
        known: Secrets that were handed out earlier; a user that is missing is created again with its own.

    Raises:
        SpecError: No administrator is set.
        UnreachableError: The server does not answer, or rejects the administrator.
    """
    policies = policies_of(uri, clients)
    connection, server = _administration(uri, admin)
    made = _make_bucket(connection)
    notes = _arrange(connection, versioning=versioning)
    existing = _users(server, connection)
    users = []
    for who, policy in policies.items():
        name = access_key_of(uri, who)
        if existing.get(name) == DISABLED and not (readmit and who in rotate):
            users.append(User(who=who, access_key=name, secret_key=None, made=False, revoked=True))
            continue
        secret = None
        if name not in existing or who in rotate:
            kept = None if who in rotate else (known or {}).get(who)
            secret = kept or secrets.token_urlsafe(30)
            _ask(partial(server.user_add, name, secret), connection)
        _ask(partial(server.policy_add, name, policy=policy), connection)
        _ask(partial(server.policy_set, name, user=name), connection)
        users.append(User(who=who, access_key=name, secret_key=secret, made=name not in existing))
    return Provisioned(bucket_made=made, notes=tuple(notes), users=tuple(users))


def revoke(uri: str, *, clients: Sequence[str], admin: Access) -> list[str]:
    """Disables clients' users: the server refuses them at once, until `provision` readmits them.

    Returns:
        The clients that had not been revoked before.

    Raises:
        NotFoundError: A client has no user; then none is revoked.
        SpecError: No administrator is set.
        UnreachableError: The server does not answer, or rejects the administrator.
    """
    connection, server = _administration(uri, admin)
    existing = _users(server, connection)
    names = {client: access_key_of(uri, client) for client in clients}
    if missing := sorted(client for client, name in names.items() if name not in existing):
        raise NotFoundError(
            f"{', '.join(missing)}: no such user of {uri}", remedy="`lwfed store init` names a store's users"
        )
    open_ = [client for client, name in names.items() if existing[name] != DISABLED]
    for client in open_:
        _ask(partial(server.user_disable, names[client]), connection)
    return open_


def _administration(uri: str, admin: Access) -> tuple[Connection, Any]:
    """Returns the administrator's connections to S3 and to MinIO's admin API. Raises SpecError if there is none."""
    bucket, _ = split_uri(uri)
    if admin.access_key is None or admin.secret_key is None:
        raise SpecError("no administrator is set", remedy="set MINIO_ROOT_USER and MINIO_ROOT_PASSWORD")
    connection = Connection(uri, bucket, access=admin, remedy=ADMINISTRATOR)
    return connection, _admin(admin, connection)


def _users(server: Any, connection: Connection) -> dict[str, str]:
    """Returns the server's users: name -> `enabled` or `disabled`."""
    listed = json.loads(_ask(server.user_list, connection) or "{}")
    return {name: str(values.get("status", "")) for name, values in listed.items()}


def _make_bucket(connection: Connection) -> bool:
    """Creates the bucket if it does not exist; returns whether it did."""
    bucket = connection.bucket
    listed = connection.request(lambda c: c.list_buckets(), about="to list buckets")
    if any(item["Name"] == bucket for item in listed.get("Buckets", ())):
        return False
    connection.request(lambda c: c.create_bucket(Bucket=bucket), about=f"to create the bucket {bucket}")
    return True


def _arrange(connection: Connection, *, versioning: bool) -> list[str]:
    """Sets the bucket's lifecycle rule and versioning; returns notes on what the server does not support."""
    bucket = connection.bucket
    rule = {
        "ID": "lwfed-unfinished-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABORT_DAYS},
    }
    notes = []
    try:
        connection.request(
            lambda c: c.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]}),
            about="to remove unfinished uploads",
            expected=(400, 403, 404, 405, 501),
        )
    except RefusedError as refused:
        notes.append(f"the server supports no rule for unfinished uploads ({refused}); MinIO deletes them after a day")
    if versioning:
        connection.request(
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
            "creating users of MinIO needs the library `minio`, which is not installed",
            remedy="pip install 'lwfed[kubeflow]', or create them by hand with the output of `lwfed store policy`",
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
    """Calls MinIO's admin API; adds remedies to its errors."""
    from minio.error import MinioAdminException
    from urllib3.exceptions import HTTPError

    try:
        return work()
    except MinioAdminException as error:
        if any(code in str(error) for code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")):
            raise UnreachableError(
                f"{connection.endpoint} rejects the administrator's credentials", remedy=ADMINISTRATOR
            ) from None
        problem, remedy = f"refuses: {error}", BY_HAND
    except (HTTPError, ValueError) as error:  # no JSON: not MinIO
        problem, remedy = f"does not answer: {error}", f"start it; {BY_HAND}"
    raise UnreachableError(f"the admin API of {connection.endpoint} {problem}", remedy=remedy)
