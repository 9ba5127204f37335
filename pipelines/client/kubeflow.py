"""A connection to Kubeflow Pipelines: kfp's own client, made quiet, quick to give up and plain about what is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from lwfed import environment
from lwfed.types.errors import LwfedError, NotFoundError, SpecError
from pipelines.client.errors import explained, no_api

CONNECT_S = 5.0
"""Seconds for a connection: a server that takes longer is not there."""
READ_S = 30.0
"""Seconds for an answer."""
API_PORT = 8888
"""The port of the API in Kubeflow Pipelines' manifests; there are no pages on it."""
POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
IN_CLUSTER = "http://ml-pipeline.{}.svc.cluster.local:8888"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Access:
    """Where Kubeflow Pipelines are, and what opens them; the names are those of `kfp.Client`.

    Attributes:
        endpoint: The address; None takes `KF_PIPELINES_ENDPOINT`, or the cluster's own name inside a pod.
        namespace: The profile's namespace on a multi-user Kubeflow; None: the pod's own, or that of kfp's context.
        existing_token: A bearer token.
        token_file: A file that holds it; it is read again for each request, as tokens of pods change.
        token_env: The environment variable that holds it.
        cookies: A cookie header, such as that of a session of the dashboard.
        ssl_ca_cert: A file of certificates to trust.
    """

    endpoint: str | None = None
    namespace: str | None = None
    existing_token: str | None = None
    token_file: Path | None = None
    token_env: str | None = None
    cookies: str | None = None
    ssl_ca_cert: Path | None = None


@dataclass(frozen=True)
class Kfp:
    """A server that has answered.

    Attributes:
        client: kfp's client.
        endpoint: The server's address.
        ui: The address of its web pages; None where it is not known: the API itself has none.
        multi_user: Whether experiments and runs belong to namespaces.
        namespace: The namespace of this user; None where there are none.
    """

    client: Any
    endpoint: str
    ui: str | None
    multi_user: bool
    namespace: str | None

    def call(self, method: Callable[..., T], *args: Any, about: str, **options: Any) -> T:
        """Calls a method of the generated API.

        Args:
            method: Such as `client._run_api.run_service_get_run`.
            *args: Its arguments.
            about: What is asked for, for the error: `the run 1234`.
            **options: Its options; those that are None are left out.

        Returns:
            What it returns.

        Raises:
            LwfedError: The server refuses or does not answer.
        """
        return _call(method, *args, endpoint=self.endpoint, about=about, **options)

    def read(self, path: str, *, about: str, missing: Callable[[str], LwfedError] | None = None) -> Iterator[bytes]:
        """Reads what the generated API has no method for, piece by piece.

        Args:
            path: Such as `/apis/v1alpha1/runs/R/nodes/N/log`.
            about: What is asked for.
            missing: Makes the error of a 404, where it is not that `about` is missing.

        Yields:
            The answer's bytes.

        Raises:
            LwfedError: As `call`.
        """
        api = self.client._run_api.api_client
        headers = {"Accept": "*/*", **({"Cookie": api.cookie} if api.cookie else {})}
        api.update_params_for_auth(headers, [], ["Bearer"])
        headers.update(api.default_headers)
        answer = _call(
            api.rest_client.pool_manager.request, "GET", api.configuration.host + path, endpoint=self.endpoint,
            about=about, headers=headers, preload_content=False, timeout=_timeout(),
        )  # fmt: skip
        try:
            if not 200 <= answer.status <= 299:
                raise explained(_refusal(answer), endpoint=self.endpoint, about=about, missing=missing)
            if "text/html" in (answer.headers.get("Content-Type") or ""):
                raise no_api(self.endpoint)
            yield from answer.stream(4096)
        except OSError as error:
            raise explained(error, endpoint=self.endpoint, about=about) from None
        finally:
            answer.close()

    def run_page(self, run_id: str) -> str:
        """Returns the address of a run's page, or words for people who must find it themselves."""
        return self.page(f"runs/details/{run_id}") or f"run {run_id} in Kubeflow's pages"

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
    with _silence():
        client = _client(access, endpoint)
    kfp = Kfp(client, endpoint, ui=_ui(endpoint), multi_user=False, namespace=None)
    if not _is_multi_user(kfp):
        return kfp
    own = access.namespace or _pod_namespace() or client.get_user_namespace() or namespace
    return replace(kfp, multi_user=True, namespace=own)


def _is_multi_user(kfp: Kfp) -> bool:
    """Asks the server for its kind. A web page answers with 200 too, and the generated API takes that for good."""
    try:
        health = json.loads(b"".join(kfp.read("/apis/v2beta1/healthz", about="its health", missing=no_api)))
    except (ValueError, UnicodeDecodeError):
        health = None
    if not isinstance(health, dict):
        raise no_api(kfp.endpoint)
    return bool(health.get("multi_user"))


def _ui(endpoint: str) -> str | None:
    """Finds the web pages: where `KF_PIPELINES_UI_ENDPOINT` says, else at the endpoint, unless that is the bare API."""
    named = environment.kfp_ui() or (None if urlsplit(endpoint).port == API_PORT else endpoint)
    return named.rstrip("/") if named else None


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

    class Quiet(kfp.Client):
        """kfp's client, which while it is made neither asks the server, five times, nor tries a request twice."""

        def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
            return kfp_server_api.V2beta1GetHealthzResponse(multi_user=False)

        def _load_config(self, *args: Any, **options: Any) -> Any:
            config = super()._load_config(*args, **options)
            config.retries = False
            return config

    token, credentials = access.existing_token, None
    if token is None and access.token_env is not None:
        token = environment.named(access.token_env)
        if token is None:
            raise SpecError(f"the variable {access.token_env} is not set", remedy="put the token into it")
    token_file = access.token_file
    if token is None and token_file is None:
        own = Path(environment.kfp_token_file() or POD_TOKEN)
        token_file = own if own.is_file() else None
    if token is None and token_file is not None:
        if not token_file.is_file():
            raise SpecError(f"there is no token file {token_file}", remedy="name a file that holds a token")
        credentials = ServiceAccountTokenVolumeCredentials(path=str(token_file))
    if access.ssl_ca_cert is not None and not access.ssl_ca_cert.is_file():
        raise SpecError(f"there is no file {access.ssl_ca_cert}", remedy="name a file of certificates (PEM)")
    return Quiet(
        host=endpoint,
        existing_token=token,
        cookies=access.cookies,
        credentials=credentials,
        ssl_ca_cert=str(access.ssl_ca_cert) if access.ssl_ca_cert else None,
    )


def _call(
    method: Callable[..., T],
    *args: Any,
    endpoint: str,
    about: str,
    **options: Any,
) -> T:
    options = {name: value for name, value in options.items() if value is not None}
    if "timeout" not in options:
        options["_request_timeout"] = (CONNECT_S, READ_S)
    try:
        return method(*args, **options)
    except LwfedError:
        raise
    except Exception as error:
        raise explained(error, endpoint=endpoint, about=about) from None


def _timeout() -> Any:
    import urllib3

    return urllib3.Timeout(connect=CONNECT_S, read=READ_S)


def _refusal(answer: Any) -> Exception:
    from kfp_server_api import ApiException

    refusal: Any = ApiException(status=answer.status, reason=answer.reason)
    refusal.body = answer.read(decode_content=True)
    return refusal


def _pod_namespace() -> str | None:
    return POD_NAMESPACE.read_text(encoding="utf-8").strip() if POD_NAMESPACE.is_file() else None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps kfp's greetings from the user."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
