"""The cluster's API: plain values in and out, retries while it does not answer, and errors that say what to do.

The only module that uses the Kubernetes client: its configuration, its credentials and `call_api`. The client's
generated methods cannot read a log from a given time on (`sinceTime`), so all requests go through `call_api`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from lwfed import environment
from lwfed.launch.kubernetes.reasons import one_line
from lwfed.patience import Patience
from lwfed.types.errors import LwfedError, SpecError, UnreachableError

T = TypeVar("T")

PATIENCE_S = 120.0
"""Seconds of retries while the API does not answer: as long as an upgrade of a control plane takes."""
ANSWER_S = (5.0, 30.0)
"""Timeouts to connect and to read an answer, in seconds."""
CONNECTIONS = 32
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
ROLE = "the Role `lwfed-coordinator` of k8s/base"

GROUPS: Mapping[str, str] = {"jobs": "/apis/batch/v1", "pods": "/api/v1", "events": "/api/v1"}
Verb = Literal["get", "list", "create", "delete"]
METHODS: Mapping[Verb, str] = {"get": "GET", "list": "GET", "create": "POST", "delete": "DELETE"}


class DeniedError(UnreachableError):
    """The cluster denies access."""


class NotConfiguredError(UnreachableError):
    """No cluster is configured."""


class Cluster:
    """A cluster's API, in one namespace.

    Args:
        namespace: The namespace of the Jobs.
        api: A configured client.
    """

    def __init__(self, namespace: str, *, api: client.ApiClient) -> None:
        self.namespace = namespace
        self.host = str(api.configuration.host)
        self._api = api

    def check(self) -> None:
        """Requests the cluster's version. Raises UnreachableError if there is no answer within 10 s."""
        self._ask("get", "version", patience_s=10)

    def create_job(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """Creates a Job; returns None if one with that name exists.

        Raises:
            SpecError: The cluster rejects the manifest as invalid.
            UnreachableError: The cluster does not answer, or denies access.
        """
        return self._ask("create", "jobs", body=manifest, none_on=(409,))

    def read_job(self, name: str) -> dict[str, Any] | None:
        """Returns a Job, or None if it does not exist."""
        return self._ask("get", "jobs", name, none_on=(404,))

    def delete_job(self, name: str, *, uid: str | None = None, patience_s: float = PATIENCE_S) -> None:
        """Deletes a Job and its pods; does nothing if it is gone or has another UID."""
        options: dict[str, Any] = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        self._ask("delete", "jobs", name, body=options, none_on=(404, 409), patience_s=patience_s)

    def read_pod(self, name: str) -> dict[str, Any] | None:
        """Returns a pod, or None if it does not exist."""
        return self._ask("get", "pods", name, none_on=(404,))

    def delete_pod(self, name: str) -> None:
        """Deletes a pod; does nothing if it is gone."""
        self._ask("delete", "pods", name, none_on=(404,), patience_s=0)

    def find(self, resource: str, *, patience_s: float = 0, **query: Any) -> list[dict[str, Any]]:
        """Lists Jobs, pods or events; tries once unless `patience_s` allows retries."""
        return self._ask("list", resource, query=query, read=_items, patience_s=patience_s) or []

    def events_of(self, uid: str) -> list[dict[str, Any]]:
        """Returns the events of an object, oldest first."""
        found = self.find("events", fieldSelector=f"involvedObject.uid={uid}")
        return sorted(found, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))

    def log(self, pod: str, *, container: str, **query: Any) -> urllib3.BaseHTTPResponse:
        """Opens a pod's log in one try; `lines_of` reads it, and its `shutdown` stops that from any thread."""
        answer = self._ask(
            "get", "pods/log", pod, query={"container": container, **query}, read=lambda opened: opened,
            timeout=(ANSWER_S[0], None), patience_s=0,
        )  # fmt: skip
        assert answer is not None
        return answer

    def log_lines(self, pod: str, *, container: str, **query: Any) -> Iterator[str]:
        """Yields the lines of a pod's log; with `follow="true"`, as they are written, until the container ends."""
        yield from lines_of(self.log(pod, container=container, **query))

    def close(self) -> None:
        """Closes the connections."""
        self._api.rest_client.pool_manager.clear()

    def _path(self, resource: str, name: str) -> str:
        if resource == "version":
            return "/version"
        kind, *part = resource.split("/")
        return "/".join([f"{GROUPS[kind]}/namespaces/{self.namespace}", kind, *filter(None, [name]), *part])

    def _ask(
        self,
        verb: Verb,
        resource: str,
        name: str = "",
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        none_on: tuple[int, ...] = (),
        read: Callable[[urllib3.BaseHTTPResponse], T] = lambda answer: json.loads(answer.data or b"{}"),
        timeout: tuple[float, float | None] = ANSWER_S,
        patience_s: float = PATIENCE_S,
    ) -> T | None:
        """Repeats a request until there is an answer or `patience_s` has passed."""
        patience = Patience(bound_s=patience_s)
        while True:
            try:
                answer = self._api.call_api(
                    self._path(resource, name),
                    METHODS[verb],
                    query_params=list((query or {}).items()),
                    header_params={"Accept": "*/*", "Content-Type": "application/json"},
                    body=body,
                    auth_settings=["BearerToken"],
                    _return_http_data_only=True,
                    _preload_content=False,
                    _request_timeout=timeout,
                )
                return read(answer)
            except ApiException as error:
                if error.status in none_on:
                    return None
                if not _passes(error.status):
                    raise self._error(error, f"{verb} {resource}") from None
                problem = f"status {error.status} {error.reason}"
            except ValueError:
                problem = "an answer that is not JSON"
            except (KeyError, TypeError) as error:
                problem = f"a malformed list of {resource}: {error!r}"
            except (urllib3.exceptions.HTTPError, OSError) as error:
                problem = one_line(str(error))
            if not patience.wait(problem):
                raise UnreachableError(
                    f"the Kubernetes API at {self.host} does not answer: {problem}",
                    remedy=f"check that it is up; then {environment.resume_hint()}",
                )

    def _error(self, error: ApiException, doing: str) -> LwfedError:
        message, what = _message(error), f"{doing} in namespace {self.namespace}"
        if error.status == 401:
            return DeniedError(
                f"the cluster at {self.host} rejects our credentials: {message}", remedy="renew those in KUBECONFIG"
            )
        if error.status in (400, 404, 422):
            gone = error.status == 404
            remedy = "set `kubernetes.namespace` to an existing one" if gone else "correct `kubernetes` in the spec"
            return SpecError(f"the cluster refuses to {what}: {message}", remedy=remedy)
        rights = "cannot " in message and " resource " in message
        remedy = f"bind {ROLE} to that service account" if rights else "check which quota or policy forbids it"
        return DeniedError(f"not allowed to {what}: {message}", remedy=remedy)


def connect(namespace: str) -> Cluster:
    """Connects to the cluster that this process runs in, else to the one that KUBECONFIG names.

    Raises:
        UnreachableError: No cluster is configured, or it does not answer.
    """
    settings = client.Configuration()
    try:
        if _in_cluster():
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(config_file=environment.kubeconfig(), client_configuration=settings)
    except ConfigException as error:
        raise NotConfiguredError(
            f"no Kubernetes cluster is configured: {one_line(str(error))}",
            remedy="set KUBECONFIG, or set launch.kind to in_process or subprocess",
        ) from None
    settings.retries = False
    settings.connection_pool_maxsize = CONNECTIONS
    cluster = Cluster(namespace, api=client.ApiClient(settings))
    try:
        cluster.check()
    except LwfedError:
        cluster.close()
        raise
    return cluster


def current_namespace() -> str:
    """Returns the namespace of this pod, else of KUBECONFIG's context, else `default`."""
    if _in_cluster():
        return OWN_NAMESPACE.read_text(encoding="utf-8").strip()
    try:
        _, active = config.list_kube_config_contexts(config_file=environment.kubeconfig())
    except ConfigException:
        return "default"
    return str((active or {}).get("context", {}).get("namespace") or "default")


def lines_of(answer: urllib3.BaseHTTPResponse) -> Iterator[str]:
    """Yields the lines of a log as they arrive, until it ends. The client's own reader would drop empty lines.

    Raises:
        UnreachableError: The connection broke.
    """
    rest = b""
    try:
        for chunk in answer.stream(1 << 16, decode_content=False):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode("utf-8", "replace")
        if rest:
            yield rest.decode("utf-8", "replace")
    except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
        raise UnreachableError(f"the connection broke: {one_line(str(error))}") from None
    finally:
        answer.close()


def _items(answer: urllib3.BaseHTTPResponse) -> list[dict[str, Any]]:
    """Returns the objects of a list; raises KeyError or TypeError unless each has a UID."""
    items: list[dict[str, Any]] = json.loads(answer.data)["items"] or []
    for item in items:
        item["metadata"]["uid"]
    return items


def _in_cluster() -> bool:
    return OWN_NAMESPACE.is_file()


def _passes(status: int | None) -> bool:
    """Whether another try may succeed after this status; the client reports a broken handshake as 0."""
    return status is None or status in (0, 408, 429) or status >= 500


def _message(error: ApiException) -> str:
    """Returns the API server's own message."""
    body = error.body or b""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body)
    try:
        return one_line(str(json.loads(text)["message"]))
    except (ValueError, KeyError, TypeError):
        return one_line(text) or str(error.reason)
