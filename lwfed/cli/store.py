"""`lwfed store`: sets up a bucket, enrols and revokes clients with credentials of their own, and tests a store."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from lwfed import environment
from lwfed.cli.enrolment import Enrolled, enrol_silos, known_secrets, secret, secret_name, write_secrets
from lwfed.cli.options import Json
from lwfed.drive.console import make_console, make_table, print_json
from lwfed.formats import bytes_text
from lwfed.store.policies import SERVER, client_policy, policies_of, server_policy
from lwfed.types.clients import client_ids
from lwfed.types.errors import SpecError, UnreachableError

if TYPE_CHECKING:
    from lwfed.store.provision import Provisioned, User
    from lwfed.store.s3.access import Access

app = typer.Typer(help="Set up an S3 store, print its policies, test it.", no_args_is_help=True, rich_markup_mode=None)


AdminUser = Annotated[
    str | None, typer.Option("--admin-user", metavar="NAME", help="MinIO's administrator; default: MINIO_ROOT_USER.")
]
AdminPassword = Annotated[
    str | None,
    typer.Option(
        "--admin-password", metavar="TEXT", help="Its password; default: MINIO_ROOT_PASSWORD, which stays hidden."
    ),
]
Endpoint = Annotated[
    str | None, typer.Option("--endpoint", metavar="URL", help="The server; default: AWS_ENDPOINT_URL_S3.")
]
Authority = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="The authority of the server's certificate, which is handed out, too."),
]


@app.command("init")
def init(
    uri: Annotated[str, typer.Argument(metavar="URI", help="s3://bucket/prefix")],
    clients: Annotated[
        int, typer.Option("--clients", metavar="N", min=0, help="Number of clients: client-000 ...")
    ] = 10,
    client: Annotated[
        list[str] | None,
        typer.Option("--client", metavar="ID", help="A client's id, instead of --clients; may be repeated."),
    ] = None,
    admin_user: AdminUser = None,
    admin_password: AdminPassword = None,
    endpoint: Endpoint = None,
    pod_endpoint: Annotated[
        str | None, typer.Option("--pod-endpoint", metavar="URL", help="The server's URL for pods.")
    ] = None,
    output: Annotated[
        str,
        typer.Option("--output", "-O", metavar="DIR", help="Folder for one file per Secret, or - for standard output."),
    ] = "-",
    silos: Annotated[
        Path | None,
        typer.Option(
            "--silos", metavar="DIR",
            help="Enrol the clients as silos: a folder per client with all that its owner needs for an agent, in place "
            "of its Secret.",
        ),
    ] = None,
    silo_endpoint: Annotated[
        str | None, typer.Option("--silo-endpoint", metavar="URL", help="The server's URL for silos.")
    ] = None,
    authority: Authority = None,
    namespace: Annotated[str, typer.Option("--namespace", metavar="NS", help="The Secrets' namespace.")] = "kubeflow",
    versioning: Annotated[
        bool, typer.Option("--versioning", help="Keep objects that are overwritten or deleted.")
    ] = False,
    rotate: Annotated[
        bool,
        typer.Option(
            "--rotate",
            help="Give existing users new secrets, too: the clients of --client, else the server and all clients. "
            "A revoked client is readmitted only by --client.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the policies and change nothing.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Create the bucket, and on MinIO a user for the server and one per client; print their Secrets.

    A second call changes nothing: existing users keep their secrets, which are not printed again, and files of a silo
    that are there stay as they are.
    """
    ids = [who for who in client or client_ids(clients) if who != SERVER]
    if dry_run:
        print_json({"uri": uri, "policies": policies_of(uri, ids)})
        return
    from lwfed.agent.enrol import Silo, secret_of
    from lwfed.store.provision import provision

    admin = _administrator(admin_user, admin_password, endpoint, authority)
    folder = None if output == "-" else Path(output)
    known = {} if folder is None else known_secrets(folder)
    if silos is not None:
        known |= {who: found for who in ids if (found := secret_of(silos / who)) is not None}
    done = provision(
        uri,
        clients=ids,
        admin=admin,
        versioning=versioning,
        rotate=(client or [SERVER, *ids]) if rotate else (),
        readmit=bool(client),
        known=known,
    )
    certificate = None if authority is None else _text_of(authority)
    shared = {"AWS_ENDPOINT_URL_S3": pod_endpoint or str(admin.endpoint)}
    if certificate is not None:
        shared["ca.crt"] = certificate
    manifests = {
        user.who: secret(user, shared, namespace=namespace)
        for user in done.users
        if user.secret_key is not None and (silos is None or user.who == SERVER)
    }
    if folder is not None:
        write_secrets(folder, manifests)
    elif manifests and not as_json:
        sys.stdout.write(yaml.safe_dump_all(manifests.values(), sort_keys=False))
    enrolled = []
    if silos is not None:
        make = partial(Silo, store=uri, endpoint=silo_endpoint or str(admin.endpoint), authority=certificate)
        enrolled = enrol_silos(
            [user for user in done.users if user.who != SERVER], silos, known=known, rotate=rotate, make=make
        )
    if as_json:
        print_json(
            {
                "uri": uri,
                "bucket_made": done.bucket_made,
                "notes": list(done.notes),
                "users": [_values(user, hidden=user.who not in manifests) for user in done.users],
                "silos": [asdict(silo) for silo in enrolled],
            }
        )
        return
    _print_result(uri, done, secrets=len(manifests), where=folder)
    _print_silos(enrolled)


@app.command("revoke")
def revoke(
    uri: Annotated[str, typer.Argument(metavar="URI", help="s3://bucket/prefix")],
    client: Annotated[
        list[str], typer.Option("--client", metavar="ID", help="A client's id; may be repeated.")
    ],
    admin_user: AdminUser = None,
    admin_password: AdminPassword = None,
    endpoint: Endpoint = None,
    authority: Authority = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Revoke clients' credentials on MinIO: from now on the server refuses them.

    Runs go on without these clients as far as their quorum allows, and updates that were counted stay. `lwfed store
    init URI --client ID --rotate` readmits a client, with a new secret.
    """
    from lwfed.store.provision import revoke as revoke_users

    done = revoke_users(uri, clients=client, admin=_administrator(admin_user, admin_password, endpoint, authority))
    if as_json:
        print_json({"uri": uri, "revoked": done, "already": [who for who in client if who not in done]})
        return
    for who in client:
        make_console(stderr=True).print(f"{who}: {'revoked' if who in done else 'was revoked already'}")


@app.command("policy")
def policy(
    client: Annotated[str, typer.Argument(metavar="CLIENT", help="A client's id, or `server`.")],
    uri: Annotated[str, typer.Option("--store", metavar="URI", help="The store.")] = "s3://lwfed",
    may_list: Annotated[
        bool,
        typer.Option("--list/--no-list", help="Let it list keys; without, AWS answers 403 for missing objects."),
    ] = True,
) -> None:
    """Print the policy of a client's credentials, for AWS, SeaweedFS or another server with IAM policies."""
    print_json(server_policy(uri) if client == SERVER else client_policy(uri, client, may_list=may_list))


@app.command("check")
def check(
    uri: Annotated[str, typer.Argument(metavar="URI", help="s3://bucket/prefix, or a folder.")],
    megabytes: Annotated[int, typer.Option("--megabytes", metavar="N", min=1, help="Size of the test object.")] = 64,
    as_json: Json = False,
) -> None:
    """Test a store with a few objects: does it work, does the first writer win, and how fast is it?"""
    from lwfed.store.opening import open_store
    from lwfed.store.trial import try_out

    found = try_out(open_store(uri), nbytes=megabytes * 1_000_000)
    if as_json:
        print_json({"uri": uri, "good": found.good, **asdict(found)})
    else:
        table = make_table(f"store {uri}", left=("", "result"))
        wins = {True: "decided by the server", None: "decided by the file system"}
        for name, value in (
            ("data come back as written", "yes" if found.whole else "no"),
            ("the first writer wins", wins.get(found.conditional, "checked before writing: not safe from races")),
            ("logs", "yes" if found.logs else "no"),
            ("write and read a ref", f"{1000 * found.latency_s:.1f} ms"),
            ("writing", f"{bytes_text(found.write_bytes_per_s)}/s"),
            ("reading", f"{bytes_text(found.read_bytes_per_s)}/s"),
        ):
            table.add_row(name, value)
        make_console().print(table)
    if not found.good:
        raise UnreachableError(f"the store {uri} does not keep its data", remedy="use another server")


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {error}", remedy="name a PEM file with --ca") from None


def _administrator(user: str | None, password: str | None, endpoint: str | None, authority: Path | None) -> Access:
    """Returns the server's address and MinIO's administrator. Raises SpecError if no server is set."""
    from lwfed.store.s3.access import Access

    name, known = environment.minio_admin()
    address = endpoint or environment.s3_endpoint()
    if address is None:
        raise SpecError("no server is set", remedy="pass --endpoint http://HOST:PORT, or set AWS_ENDPOINT_URL_S3")
    return Access(
        access_key=user or name,
        secret_key=password or known,
        endpoint=address,
        ca_bundle=None if authority is None else str(authority),
    )


def _values(user: User, *, hidden: bool) -> dict[str, Any]:
    """Returns a user as plain values; the secret of a silo is in its folder alone."""
    values = {**asdict(user), "secret": secret_name(user.who)}
    return values | {"secret_key": None} if hidden else values


def _print_result(uri: str, done: Provisioned, *, secrets: int, where: Path | None) -> None:
    """Prints the result to standard error."""
    console = make_console(stderr=True)
    new = sum(user.made for user in done.users)
    console.print(
        f"{uri}: bucket {'created' if done.bucket_made else 'exists'}, {new} users created, {len(done.users) - new} "
        f"existed, {secrets} secrets {'printed' if where is None else f'written to {where}'}"
    )
    for note in done.notes:
        console.print(note)
    if revoked := [user.who for user in done.users if user.revoked]:
        console.print(f"revoked: {', '.join(revoked)}; --rotate --client ID readmits one")


def _print_silos(enrolled: Sequence[Enrolled]) -> None:
    console = make_console(stderr=True)
    for silo in enrolled:
        kept = f"; kept as they are: {', '.join(silo.kept)}" if silo.kept else ""
        console.print(f"{silo.client}: {silo.folder} is for its owner, by a safe way: it holds its credentials{kept}")
