"""A connection to Kubeflow Pipelines: kfp's own client without its output, with short timeouts and clear errors."""

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
from pipelines.client.errors import lwfed_error, not_kfp_error

TIMEOUT_S = (5.0, 30.0)
"""Timeouts in seconds: to connect (a server that takes longer is down), and to read an answer."""
API_PORT = 8888
"""The API's port in Kubeflow Pipelines' manifests; it serves no web pages."""
POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
IN_CLUSTER = "http://ml-pipeline.{}.svc.cluster.local:8888"

T = TypeVar("T")
Text = str | None
File = Path | None


@dataclass(frozen=True, slots=True)
class Access:
    """The address of Kubeflow Pipelines and the credentials: each attribute is an option of the commands.

    In a pod, None means the pod's own address, namespace and token; elsewhere, a namespace of None means that of kfp's
    context. A token file is read again for each request, since tokens of pods change.
    """

    endpoint: Annotated[
        Text, Option("--endpoint", metavar="URL", help="URL of Kubeflow Pipelines; default: KF_PIPELINES_ENDPOINT.")
    ] = None
    namespace: Annotated[
        Text,
        Option("--namespace", metavar="NS", help="The namespace of the run and its Jobs: on Kubeflow, your profile."),
    ] = None
    token: Annotated[Text, Option("--token", metavar="TOKEN", help="A bearer token; --token-file is safer.")] = None
    token_file: Annotated[File, Option("--token-file", metavar="FILE", help="A file with the token.")] = None
    existing_token_env: Annotated[
        Text, Option("--existing-token-env", metavar="NAME", help="A variable with the token.")
    ] = None
    cookies: Annotated[
        Text, Option("--cookies", metavar="TEXT", help="A session's cookies: authservice_session=...")
    ] = None
    ssl_ca_cert: Annotated[
        File, Option("--ssl-ca-cert", metavar="FILE", help="The certificates of the server's authority.")
    ] = None


@dataclass(frozen=True)
class Kfp:
    """A connection to a server that has answered.

    Attributes:
        client: kfp's client.
        endpoint: The server's URL.
        ui: The URL of its web pages; None if unknown, since the API itself has none.
        namespace: The user's namespace; None if the server has no namespaces for experiments and runs.
    """

    client: Any
    endpoint: str
    ui: str | None
    namespace: str | None = None

    def call(self, method: Callable[..., T], *args: Any, about: str, **options: Any) -> T:
        """Calls a method of kfp's client, or of its generated API.

        Args:
            method: Such as `client.get_run`.
            *args: Its arguments.
            about: What is requested, for the error: `the run 1234`.
            **options: Its options.

        Returns:
            The method's result.

        Raises:
            LwfedError: The server refuses or does not answer.
        """
        try:
            return method(*args, **options)
        except LwfedError:
            raise
        except Exception as error:
            raise lwfed_error(error, endpoint=self.endpoint, about=about) from None

    def read(self, path: str, *, about: str) -> bytes:
        """Reads a path for which the generated API has no method.

        Args:
            path: Such as `/apis/v1alpha1/runs/R/nodes/N/log`.
            about: What is requested.

        Returns:
            The answer.

        Raises:
            LwfedError: As in `call`; NotFoundError also if the answer is a web page.
        """
        api = self.client._run_api.api_client
        headers = {"Accept": "*/*", **({"Cookie": api.cookie} if api.cookie else {})}
        api.update_params_for_auth(headers, [], ["Bearer"])
        headers.update(api.default_headers)
        answer = self.call(api.rest_client.GET, api.configuration.host + path, headers=headers, about=about)
        if "text/html" in (answer.urllib3_response.headers.get("Content-Type") or ""):
            raise not_kfp_error(self.endpoint)
        return bytes(answer.data)

    def page(self, path: str) -> str | None:
        """Returns the URL of a page; None if unknown."""
        return None if self.ui is None else f"{self.ui}/#/{path}"


def connect(access: Access, *, namespace: str | None = None) -> Kfp:
    """Opens a connection, and checks that the server is Kubeflow Pipelines.

    Args:
        access: The address and credentials.
        namespace: The namespace if neither `access` nor a pod nor kfp's context names one.

    Returns:
        The connection.

    Raises:
        SpecError: No endpoint is set, or a token cannot be read.
        UnreachableError: The server does not answer within seconds.
        NotFoundError: The server is not Kubeflow Pipelines.
    """
    endpoint = _endpoint(access, namespace)
    ui = environment.kfp_ui() or (None if urlsplit(endpoint).port == API_PORT else endpoint)
    with silence():
        kfp = Kfp(_client(access, endpoint), endpoint, ui=ui.rstrip("/") if ui else None)
    try:  # a web page answers with 200 too, and the generated API would accept that
        health = json.loads(kfp.read("/apis/v2beta1/healthz", about="its health"))
    except (NotFoundError, ValueError):
        health = None
    if not isinstance(health, dict):
        raise not_kfp_error(endpoint)
    own = None
    if health.get("multi_user"):
        pod = POD_NAMESPACE.read_text(encoding="utf-8").strip() if POD_NAMESPACE.is_file() else None
        own = access.namespace or pod or kfp.client.get_user_namespace() or namespace
    kfp.client._context_setting["namespace"] = own  # kfp's context may be that of another server
    return replace(kfp, namespace=own)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hides the output and warnings of kfp's client."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _endpoint(access: Access, namespace: str | None) -> str:
    endpoint = access.endpoint or environment.kfp_endpoint()
    if endpoint is None and POD_NAMESPACE.is_file():
        endpoint = IN_CLUSTER.format(access.namespace or namespace or "kubeflow")
    if endpoint is None:
        raise SpecError("no server is set", remedy="pass --endpoint URL, or set KF_PIPELINES_ENDPOINT")
    scheme, sign, rest = endpoint.partition("://")
    if not sign:
        scheme, rest = "https", endpoint
    if scheme not in ("http", "https") or not rest.strip("/"):
        raise SpecError(f"`{endpoint}` is not a URL", remedy="write --endpoint https://HOST/pipeline")
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
        """kfp's client without its five requests at creation, and without retries."""

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
            raise SpecError(f"the file {file} does not exist", remedy=f"name a file with {holds}")
    client = Quick(
        host=endpoint,
        existing_token=token,
        cookies=access.cookies,
        credentials=ServiceAccountTokenVolumeCredentials(path=str(token_file)) if token_file and not token else None,
        ssl_ca_cert=str(access.ssl_ca_cert) if access.ssl_ca_cert else None,
    )
    rest = client._run_api.api_client.rest_client  # shared by all parts of the client
    send = rest.request
    rest.request = lambda *args, **options: send(*args, **{**options, "_request_timeout": TIMEOUT_S})
    return client
