"""Requests to an S3 server: one client per process, retries while the server is down, and errors with a remedy.

All retries happen here and none in botocore. Its retry modes limit the number of tries and not their time, stop once
an answer's headers have arrived, and share a quota that a long outage uses up. Here `LWFED_S3_PATIENCE_S` limits the
time since the first failure, or since the last byte received.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, TypeVar

import botocore.session
from botocore import exceptions
from botocore.config import Config
from urllib3.exceptions import HTTPError

from lwfed import environment
from lwfed.patience import Patience
from lwfed.store.s3 import answers
from lwfed.store.s3.access import Access, read_access
from lwfed.store.s3.answers import TRANSIENT_STATUS, ForeignError
from lwfed.types.errors import DeniedError, DiskFullError, LwfedError, SpecError, UnreachableError

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
CONNECTIONS = 32

TRANSIENT_CODES = frozenset(
    {
        "RequestTimeout", "SlowDown", "SlowDownRead", "SlowDownWrite", "InternalError", "ServiceUnavailable",
        "ThrottlingException", "OperationAborted", "ConditionalRequestConflict", "IncompleteBody", "BadDigest",
        "XAmzContentSHA256Mismatch",
    }
)  # fmt: skip
FULL = "XMinioStorageFull"
FULL_CODES = frozenset({FULL, "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage"})
CREDENTIAL_CODES = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "InvalidTokenId"}
)

CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or LWFED_S3_SECRET_DIR to a mounted secret"
REJECTS = "rejects these credentials"
WAITS = "and LWFED_S3_SECRET_DIR has no others yet"
RENEWED = "if they were rotated or revoked, the store's administrator has others"


class RefusedError(Exception):
    """An error's `status`, `code` and `text`, and whether an earlier try may have succeeded (`repeated`).

    `skew_s` is by how many seconds this machine's clock is ahead of the server's, if the answer says its time;
    `fields` are those of S3's error, `headers` the answer's.
    """

    def __init__(self, error: exceptions.ClientError, *, repeated: bool) -> None:
        metadata, problem = error.response.get("ResponseMetadata", {}), error.response.get("Error", {})
        self.fields, self.headers = problem, metadata.get("HTTPHeaders", {})
        self.status = int(metadata.get("HTTPStatusCode", 0))
        self.skew_s = answers.clock_skew_s(self.fields, self.headers, now=datetime.now(UTC))
        self.code = str(problem.get("Code", ""))
        if self.code.isdigit() or not self.code:  # the answer to HEAD has no body, so its code may be in a header
            self.code = self.headers.get("x-minio-error-code", self.code)
        if self.status == 500 and "no space left" in str(error):  # MinIO's answer before it has measured its space
            self.code = FULL
        self.text = problem.get("Message") or str(error)
        self.repeated = repeated
        super().__init__(str(self.status) if self.code.isdigit() else f"{self.status} {self.code}")


class BrokenOffError(OSError):
    """An answer that broke off."""


@lru_cache(maxsize=8)
def _client(process: int, access: Access, patience_s: float, variables: tuple[tuple[str, str], ...]) -> Any:
    """Returns the client of a process and environment; a forked child gets its own."""
    session = botocore.session.get_session()
    limit = max(1.0, patience_s)
    config = Config(
        connect_timeout=min(CONNECT_TIMEOUT_S, limit),
        read_timeout=min(READ_TIMEOUT_S, limit),
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
        # The signature covers the body's sha256, and servers check it. Some servers refuse botocore's trailing
        # checksums, and everything that is read is checked against our own digests.
        s3={"payload_signing_enabled": True},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    client = session.create_client(
        "s3",
        region_name=access.region or environment.s3_region() or session.get_config_variable("region") or "us-east-1",
        endpoint_url=access.endpoint,
        verify=access.ca_bundle,
        aws_access_key_id=access.access_key,
        aws_secret_access_key=access.secret_key,
        aws_session_token=access.session_token,
        config=config,
    )
    aws = ".amazonaws.com" in client.meta.endpoint_url
    client.meta.events.register("response-received.s3", partial(answers.refuse_foreign, aws=aws))
    return client


@dataclass(eq=False)
class Connection:
    """A connection to a bucket, of one store or of data.

    Attributes:
        uri: The URI of the store or the data, for messages.
        bucket: Its bucket.
        patience_s: Seconds of retries.
        access: The server and credentials; None: the mounted secret, else botocore's own chain.
        remedy: The remedy if the server rejects the credentials; None: the one for a store.
        bucket_remedy: The remedy if there is no bucket; None: the one for a store.
    """

    uri: str
    bucket: str
    patience_s: float = field(default_factory=environment.s3_patience_s)
    access: Access | None = None
    remedy: str | None = None
    bucket_remedy: str | None = None
    _mounted: Access | None = None
    _accepted: bool = False

    @property
    def client(self) -> Any:
        """The process's client."""
        access = self.access or self._mounted
        if access is None:
            access = self._mounted = read_access()
        for name, value in (*environment.aws_variables(), *vars(access).items()):
            if value and not value.isprintable():
                raise SpecError(f"{name} has a line break or a control character", remedy="write its value as one line")
        try:
            return _client(os.getpid(), access, self.patience_s, environment.aws_variables())
        except (exceptions.BotoCoreError, ValueError) as error:
            raise SpecError(
                f"the S3 server of {self.uri} is not configured correctly: {error}",
                remedy="check AWS_ENDPOINT_URL_S3 (http://HOST:PORT), AWS_PROFILE and AWS_CA_BUNDLE",
            ) from None

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return str(self.client.meta.endpoint_url)

    def patience(self) -> Patience:
        """Returns new patience for one request, or for one object whose parts are transferred together."""

        def report(problem: str, left_s: float) -> None:
            what = problem if problem.startswith(REJECTS) else f"does not answer ({problem})"
            logging.getLogger("lwfed").warning("%s %s; retrying for %.0f s", self.endpoint, what, left_s)

        return Patience(bound_s=self.patience_s, report=report)

    def request(
        self,
        work: Callable[[Any], T],
        *,
        about: str,
        expected: Collection[int] = (),
        patience: Patience | None = None,
    ) -> T:
        """Runs a request, and repeats it while the server is down.

        Keys of a mounted secret that have worked and are rejected now are waited for, as a server is: whoever rotates
        them changes the server first.

        Args:
            work: The request, given the client; it may run several times.
            about: What the request does, for messages.
            expected: Statuses that the caller handles; they raise RefusedError.
            patience: How long to retry; `work` may record progress in it. None: the connection's own.

        Raises:
            UnreachableError: The server does not answer.
            DeniedError: It refuses the credentials, or this machine's clock.
            DiskFullError: The server has no space left.
        """
        patience = patience or self.patience()
        repeated = False
        while True:
            denied: LwfedError | None = None
            try:
                answer = work(self.client)
            except LwfedError:
                raise
            except ForeignError as foreign:
                raise self._foreign(foreign, about) from None
            except exceptions.ClientError as error:
                refused = RefusedError(error, repeated=repeated)
                status, code = refused.status, refused.code
                if status in expected and code not in TRANSIENT_CODES and code != "NoSuchBucket":
                    raise refused from None
                if (code in CREDENTIAL_CODES or code == "403") and self._renewed():  # HEAD has no body to say why
                    continue
                problem = str(refused)
                if code in CREDENTIAL_CODES and self._may_be_renewed:
                    problem, denied = f"{REJECTS} ({code}), {WAITS}", self.refusal(refused, about)
                elif code == FULL or not (status in TRANSIENT_STATUS or code in TRANSIENT_CODES):
                    raise self.refusal(refused, about) from None
            except (exceptions.BotoCoreError, HTTPError, OSError) as error:
                strange = answers.not_http(error)
                final = self._final(error) if strange is None else self._foreign(strange, about)
                if final is not None:
                    raise final from None
                problem = _reason(error)
            else:
                patience.answered()
                self._accepted = True
                return answer
            repeated = True
            if not patience.wait(problem):
                raise denied or UnreachableError(
                    f"the S3 server {self.endpoint} of {self.uri} does not answer ({problem}); tried {about} "
                    f"for {patience.failing_s:.0f} s",
                    remedy=f"start it, or set AWS_ENDPOINT_URL_S3 to its address; then {environment.resume_hint()}",
                )

    @property
    def _may_be_renewed(self) -> bool:
        """Whether keys that are rejected have worked, and come from a mounted secret, which may change."""
        return self._accepted and self.access is None and environment.s3_secret_folder() is not None

    def _renewed(self) -> bool:
        """Reads the mounted secret again. Returns whether it has changed."""
        known = self._mounted
        if self.access is None:
            with suppress(SpecError):  # while its files are replaced
                self._mounted = read_access()
        return self._mounted != known

    def refusal(self, refused: RefusedError, about: str) -> LwfedError:
        """Returns the error for an answer that the caller cannot handle."""
        status, code = refused.status, refused.code
        who = f"the S3 server {self.endpoint} of {self.uri}"
        if status == 507 or code in FULL_CODES:
            return DiskFullError(
                f"{who} has no space left {about} ({code})",
                remedy=f"free some space or raise its quota; then {environment.resume_hint()}",
            )
        if code == "NoSuchBucket":
            return UnreachableError(
                f"{who} has no bucket {self.bucket}",
                remedy=self.bucket_remedy or f"create it with `lwfed store init {self.uri}`",
            )
        if "API port" in refused.text:  # MinIO's console
            return self._foreign(ForeignError(status, "an error", refused.text), about)
        if answers.is_skewed(code, status, refused.skew_s):
            return DeniedError(
                f"{who} refuses {about} ({code}): {answers.skew_text(refused.skew_s)}",
                remedy="set both by NTP (on Linux `timedatectl set-ntp true`); keys and policies are not the cause",
            )
        if status in answers.REDIRECTS or code in answers.REGION_CODES:
            return UnreachableError(
                f"{who} does not serve the bucket {self.bucket} at this address and region: it answers the request "
                f"{about} with {refused}",
                remedy=answers.remedy_for_region(refused.fields, refused.headers, endpoint=self.endpoint),
            )
        if code in CREDENTIAL_CODES:
            return DeniedError(f"{who} {REJECTS} ({code})", remedy=self.remedy or f"{CREDENTIALS}; {RENEWED}")
        if status in (401, 403):
            return DeniedError(
                f"{who} does not allow these credentials {about} ({code})",
                remedy=self.remedy
                or f"check {'them' if code.isdigit() else 'their policy'}: `lwfed store policy` prints what they need, "
                f"`lwfed store init {self.uri}` creates others",
            )
        if status == 400 and code.isdigit():
            return UnreachableError(
                f"{who} refuses {about} (400) and does not say why",
                remedy="check AWS_REGION, the keys and AWS_SESSION_TOKEN",
            )
        return UnreachableError(
            f"{who} refuses {about}: {refused} {refused.text}", remedy="`lwfed store check` shows what it can do"
        )

    def _foreign(self, foreign: ForeignError, about: str) -> LwfedError:
        return UnreachableError(
            f"{self.endpoint} is not the S3 server of {self.uri}: it answers the request {about} with {foreign}",
            remedy=answers.remedy_for_foreign(foreign, endpoint=self.endpoint),
        )

    def _final(self, error: Exception) -> LwfedError | None:
        """Returns the error if retries cannot fix it, else None."""
        text = str(error)
        if isinstance(
            error,
            exceptions.NoCredentialsError | exceptions.PartialCredentialsError | exceptions.CredentialRetrievalError,
        ):
            return UnreachableError(f"there are no credentials for {self.uri} ({text})", remedy=CREDENTIALS)
        if isinstance(error, exceptions.ParamValidationError | exceptions.UnknownEndpointError):
            return SpecError(f"`store.uri` {self.uri}: {text}", remedy="write it as s3://bucket/prefix")
        if isinstance(error, exceptions.SSLError) or "CA certificate bundle" in text:
            return UnreachableError(
                f"the S3 server {self.endpoint} of {self.uri} cannot be trusted: {_reason(error)}",
                remedy="set AWS_CA_BUNDLE to the certificate of its authority, or put it into the mounted secret as "
                "ca.crt; for a server without TLS, use http://",
            )
        return None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
