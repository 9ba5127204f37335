"""A connection to Kubeflow Pipelines: kfp's own client, made quiet, quick to give up and plain about what is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from typer import Option

from lwfed import environment
from lwfed.types.errors import LwfedError, NotFoundError, SpecError
from pipelines.client.errors import explained, no_api

TIMEOUT_S = (5.0, 30.0)
"""Seconds for a connection (a server that takes longer is not there), and for an answer."""
API_PORT = 8888
"""The port of the API in Kubeflow Pipelines' manifests; there are no pages on it."""
POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
IN_CLUSTER = "http://ml-pipeline.{}.svc.cluster.local:8888"

T = TypeVar("T")
Text = str | None
File = Path | None


@dataclass(frozen=True, slots=True)
class Access:
    """Where Kubeflow Pipelines are, and what opens them: each attribute is an option of the commands.

    Inside a pod its own address, namespace and token stand for what is None, and kfp's context elsewhere for the
    namespace. A file's token is read again for each request, as tokens of pods change.
    """

    endpoint: Annotated[
        Text, Option("--endpoint", metavar="URL", help="Kubeflow Pipelines' address; else KF_PIPELINES_ENDPOINT.")
    ] = None
    namespace: Annotated[
        Text,
        Option("--namespace", metavar="NS", help="The namespace of the run and its Jobs: on Kubeflow, your profile."),
    ] = None
    token: Annotated[
        Text, Option("--token", metavar="TOKEN", help="A bearer token; others see it: better --token-file.")
    ] = None
    token_file: Annotated[File, Option("--token-file", metavar="FILE", help="A file that holds the token.")] = None
    existing_token_env: Annotated[
        Text, Option("--existing-token-env", metavar="NAME", help="The variable that holds the token.")
    ] = None
    cookies: Annotated[
        Text, Option("--cookies", metavar="TEXT", help="Cookies of a session: authservice_session=...")
    ] = None
    ssl_ca_cert: Annotated[
        File, Option("--ssl-ca-cert", metavar="FILE", help="Certificates to trust the server by.")
    ] = None


@dataclass(frozen=True)
class Kfp:
    """A server that has answered.

    Attributes:
        client: kfp's client.
        endpoint: The server's address.
        ui: The address of its web pages; None where it is not known: the API itself has none.
        namespace: The namespace of this user; None where experiments and runs belong to none.
    """

    client: Any
    endpoint: str
    ui: str | None
    namespace: str | None = None

    def call(self, method: Callable[..., T], *args: Any, about: str, **options: Any) -> T:
        """Calls a method of kfp's client, or of the generated API below it.

        Args:
            method: Such as `client.get_run`.
            *args: Its arguments.
            about: What is asked for, for the error: `the run 1234`.
            **options: Its options.

        Returns:
            What it returns.

        Raises:
            LwfedError: The server refuses or does not answer.
        """
        try:
            return method(*args, **options)
        except LwfedError:
            raise
        except Exception as error:
            raise explained(error, endpoint=self.endpoint, about=about) from None

    def read(self, path: str, *, about: str) -> bytes:
        """Reads what the generated API has no method for.

        Args:
            path: Such as `/apis/v1alpha1/runs/R/nodes/N/log`.
            about: What is asked for.

        Returns:
            The answer.

        Raises:
            LwfedError: As `call`; NotFoundError also where a web page answers.
        """
        api = self.client._run_api.api_client
        headers = {"Accept": "*/*", **({"Cookie": api.cookie} if api.cookie else {})}
        api.update_params_for_auth(headers, [], ["Bearer"])
        headers.update(api.default_headers)
        answer = self.call(api.rest_client.GET, api.configuration.host + path, headers=headers, about=about)
        if "text/html" in (answer.urllib3_response.headers.get("Content-Type") or ""):
            raise no_api(self.endpoint)
        return bytes(answer.data)

    def page(self, path: str) -> str | None:
        """Returns the address of a page; None where it is not known."""
        return None if self.ui is None else f"{self.ui}/#/{path}"


def connect(access: Access, *, namespace: str | None = None) -> Kfp:
    """Opens a connection, and asks the server whether it is one.

    Args:
        access: Where, and what opens it.
        namespace: The namespace where `access` names none, nor a pod, nor kfp's context.

    Returns:
        The connection.

    Raises:
        SpecError: No endpoint is named, or a token cannot be read.
        UnreachableError: It does not answer, within seconds.
        NotFoundError: What answers are not Kubeflow Pipelines.
    """
    endpoint = _endpoint(access, namespace)
    ui = environment.kfp_ui() or (None if urlsplit(endpoint).port == API_PORT else endpoint)
    with silence():
        kfp = Kfp(_client(access, endpoint), endpoint, ui=ui.rstrip("/") if ui else None)
    try:  # a web page answers with 200 too, and the generated API would take that for good
        health = json.loads(kfp.read("/apis/v2beta1/healthz", about="its health"))
    except (NotFoundError, ValueError):
        health = None
    if not isinstance(health, dict):
        raise no_api(endpoint)
    own = None
    if health.get("multi_user"):
        pod = POD_NAMESPACE.read_text(encoding="utf-8").strip() if POD_NAMESPACE.is_file() else None
        own = access.namespace or pod or kfp.client.get_user_namespace() or namespace
    kfp.client._context_setting["namespace"] = own  # kfp's context may be that of another server
    return replace(kfp, namespace=own)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps what kfp's client prints from the user."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _endpoint(access: Access, namespace: str | None) -> str:
    endpoint = access.endpoint or environment.kfp_endpoint()
    if endpoint is None and POD_NAMESPACE.is_file():
        endpoint = IN_CLUSTER.format(access.namespace or namespace or "kubeflow")
    if endpoint is None:
        raise SpecError("no server is named", remedy="give --endpoint URL, or set KF_PIPELINES_ENDPOINT")
    scheme, sign, rest = endpoint.partition("://")
    if not sign:
        scheme, rest = "https", endpoint
    if scheme not in ("http", "https") or not rest.strip("/"):
        raise SpecError(f"`{endpoint}` is no address of a server", remedy="write --endpoint https://HOST/pipeline")
    return f"{scheme}://{rest}".split("#", 1)[0].rstrip("/")


def _client(access: Access, endpoint: str) -> Any:
    try:
        import kfp
        import kfp_server_api
        from kfp.client import ServiceAccountTokenVolumeCredentials
    except ImportError:
        raise NotFoundError(
            "Kubeflow Pipelines' client is not installed", remedy="pip install 'lwfed[kubeflow]'"
        ) from None

    class Quick(kfp.Client):
        """kfp's client, which while it is made neither asks the server, five times, nor tries a request twice."""

        def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
            return kfp_server_api.V2beta1GetHealthzResponse(multi_user=False)

        def _load_config(self, *args: Any, **options: Any) -> Any:
            config = super()._load_config(*args, **options)
            config.retries = False
            return config

    token = access.token or (environment.named(access.existing_token_env) if access.existing_token_env else None)
    if token is None and access.existing_token_env is not None:
        raise SpecError(f"the variable {access.existing_token_env} is not set", remedy="put the token into it")
    own = Path(environment.kfp_token_file() or POD_TOKEN)
    token_file = access.token_file or (own if own.is_file() else None)
    for file, holds in ((access.token_file, "a token"), (access.ssl_ca_cert, "certificates (PEM)")):
        if file is not None and not file.is_file():
            raise SpecError(f"there is no file {file}", remedy=f"name a file that holds {holds}")
    client = Quick(
        host=endpoint,
        existing_token=token,
        cookies=access.cookies,
        credentials=ServiceAccountTokenVolumeCredentials(path=str(token_file)) if token_file and not token else None,
        ssl_ca_cert=str(access.ssl_ca_cert) if access.ssl_ca_cert else None,
    )
    rest = client._run_api.api_client.rest_client  # which all parts of the client share
    send = rest.request
    rest.request = lambda *args, **options: send(*args, **{**options, "_request_timeout": TIMEOUT_S})
    return client
