"""`lwfed store`: sets up a bucket, limits clients' credentials to their own folders, and tests a store."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from lwfed import environment
from lwfed.cli.options import Json
from lwfed.drive.console import make_console, make_table, print_json
from lwfed.formats import bytes_text
from lwfed.store.policies import SERVER, client_policy, policies_of, server_policy
from lwfed.types.clients import client_ids
from lwfed.types.errors import LwfedError, SpecError, UnreachableError

if TYPE_CHECKING:
    from lwfed.store.provision import Provisioned, User

app = typer.Typer(help="Set up an S3 store, print its policies, test it.", no_args_is_help=True, rich_markup_mode=None)

SECRET_NAME = "lwfed-store"


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
    admin_user: Annotated[
        str | None,
        typer.Option("--admin-user", metavar="NAME", help="MinIO's administrator; default: MINIO_ROOT_USER."),
    ] = None,
    admin_password: Annotated[
        str | None,
        typer.Option(
            "--admin-password", metavar="TEXT", help="Its password; default: MINIO_ROOT_PASSWORD, which stays hidden."
        ),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="URL", help="The server; default: AWS_ENDPOINT_URL_S3.")
    ] = None,
    pod_endpoint: Annotated[
        str | None, typer.Option("--pod-endpoint", metavar="URL", help="The server's URL for pods.")
    ] = None,
    output: Annotated[
        str,
        typer.Option("--output", "-O", metavar="DIR", help="Folder for one file per Secret, or - for standard output."),
    ] = "-",
    authority: Annotated[
        Path | None,
        typer.Option(
            "--ca", metavar="FILE", help="The authority of the server's certificate; included in the Secrets."
        ),
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace", metavar="NS", help="The Secrets' namespace.")] = "kubeflow",
    versioning: Annotated[
        bool, typer.Option("--versioning", help="Keep objects that are overwritten or deleted.")
    ] = False,
    rotate: Annotated[bool, typer.Option("--rotate", help="Give existing users new secrets, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the policies and change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Create the bucket, and on MinIO a user for the server and one per client; print their Secrets.

    A second call changes nothing: existing users keep their secrets, which are not printed again.
    """
    ids = list(client or client_ids(clients))
    if dry_run:
        print_json({"uri": uri, "policies": policies_of(uri, ids)})
        return
    from lwfed.store.provision import provision
    from lwfed.store.s3.client import Access

    name, password = environment.minio_admin()
    address = endpoint or environment.s3_endpoint()
    if address is None:
        raise SpecError("no server is set", remedy="pass --endpoint http://HOST:PORT, or set AWS_ENDPOINT_URL_S3")
    admin = Access(
        access_key=admin_user or name,
        secret_key=admin_password or password,
        endpoint=address,
        ca_bundle=None if authority is None else str(authority),
    )
    folder = None if output == "-" else Path(output)
    known = {} if folder is None else _known(folder)
    done = provision(uri, clients=ids, admin=admin, versioning=versioning, rotate=rotate, known=known)
    shared = {"AWS_ENDPOINT_URL_S3": pod_endpoint or address}
    if authority is not None:
        shared["ca.crt"] = _text_of(authority)
    manifests = {
        user.who: _secret(user, shared, namespace=namespace) for user in done.users if user.secret_key is not None
    }
    if folder is not None:
        _write(folder, manifests)
    if as_json:
        users = [{**asdict(user), "secret": _secret_name(user.who)} for user in done.users]
        print_json({"uri": uri, "bucket_made": done.bucket_made, "notes": list(done.notes), "users": users})
        return
    if folder is None and manifests:
        sys.stdout.write(yaml.safe_dump_all(manifests.values(), sort_keys=False))
    _print_result(uri, done, folder)


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


def _secret_name(who: str) -> str:
    return f"{SECRET_NAME}-{who}".lower().replace("_", "-")


def _secret(user: User, shared: dict[str, str], *, namespace: str) -> dict[str, Any]:
    """Returns a Kubernetes Secret, for use as environment or mounted at LWFED_S3_SECRET_DIR."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": _secret_name(user.who),
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "lwfed"},
        },
        "type": "Opaque",
        "stringData": {"AWS_ACCESS_KEY_ID": user.access_key, "AWS_SECRET_ACCESS_KEY": user.secret_key, **shared},
    }


def _known(folder: Path) -> dict[str, str]:
    """Reads the secrets that an earlier call wrote to a folder: client -> secret."""
    known = {}
    for path in sorted(folder.glob("*.yaml")) if folder.is_dir() else ():
        try:
            known[path.stem] = str(
                yaml.safe_load(path.read_text(encoding="utf-8"))["stringData"]["AWS_SECRET_ACCESS_KEY"]
            )
        except (KeyError, TypeError, yaml.YAMLError):
            raise SpecError(f"{path} is not a Secret of lwfed", remedy="name another folder with --output") from None
    return known


def _write(folder: Path, manifests: dict[str, dict[str, Any]]) -> None:
    """Writes files that only their owner can read."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for who, manifest in manifests.items():
            path = folder / f"{who}.yaml"
            path.touch(mode=0o600)
            path.chmod(0o600)
            path.write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise LwfedError(
            f"the secrets cannot be written to {folder}: {error.strerror}",
            remedy="name another folder and repeat with --rotate: secrets are shown only once",
        ) from error


def _print_result(uri: str, done: Provisioned, folder: Path | None) -> None:
    """Prints the result to standard error."""
    console = make_console(stderr=True)
    new = sum(user.made for user in done.users)
    secrets = sum(user.secret_key is not None for user in done.users)
    console.print(
        f"{uri}: bucket {'created' if done.bucket_made else 'exists'}, {new} users created, {len(done.users) - new} "
        f"existed, {secrets} secrets {'printed' if folder is None else f'written to {folder}'}"
    )
    for note in done.notes:
        console.print(note)
