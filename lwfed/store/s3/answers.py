"""Tells S3's answers from those of other servers: a web console, a proxy, a static site, another API."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import BadStatusLine, RemoteDisconnected
from typing import Any
from urllib.parse import urlsplit

TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
SKEW_CODES = frozenset({"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"})
REGION_CODES = frozenset(
    {"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException"}
)
MOST_SKEW_S = 900
"""Seconds that a client's clock may differ: every S3 server refuses older and later signatures."""

MARKS = ("x-amz-request-id", "x-amz-id-2", "x-amz-bucket-region", "x-minio-error-code", "x-guploader-uploadid")
"""Headers that only S3 servers send; load balancers and CDNs send others that start with `x-amz`."""
ROOTS = {
    "ListObjectsV2": "ListBucketResult",
    "ListBuckets": "ListAllMyBucketsResult",
    "CreateMultipartUpload": "InitiateMultipartUploadResult",
    "CompleteMultipartUpload": "CompleteMultipartUploadResult",
}
"""Operation -> root of the XML that answers it."""
ROOT = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:[\w.-]+:)?([\w.-]+)", re.DOTALL)
ENDPOINT = re.compile(rb"<Endpoint>(.*?)</Endpoint>")
TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.DOTALL | re.IGNORECASE)
MD5 = re.compile(r'"?[0-9a-f]{32}(-\d+)?"?')

API = (
    "set AWS_ENDPOINT_URL_S3 to the port of the server's S3 API, not to that of its web console or of another server "
    "(MinIO: 9000 is the API, 9001 the console)"
)


@dataclass(eq=False)
class ForeignError(Exception):
    """An answer that is not S3's.

    Attributes:
        status: Its HTTP status; 0 if it is not HTTP.
        what: What it is instead, in words.
        text: The start of its text, or a page's title; may be empty.
        location: Where it redirects to; empty if it does not.
    """

    status: int
    what: str
    text: str = ""
    location: str = ""

    def __str__(self) -> str:
        told = f" `{self.text}`" if self.text else ""
        return f"{self.what}{told}" + (f" (status {self.status})" if self.status else "")


def refuse_foreign(event_name: str, response_dict: dict[str, Any] | None, *, aws: bool, **_: Any) -> None:
    """Raises ForeignError for an answer that no S3 server gives; botocore calls it for each answer.

    Answers of a proxy whose server is down pass: they are retried. After a redirect without a region botocore asks for
    it by HeadBucket, without end if that is redirected too, so only AWS may send one, and only in its first answer.

    Args:
        event_name: Ends with the operation's name.
        response_dict: `status_code`, `headers` and `body`; None if there is no answer.
        aws: Whether the server is AWS.
    """
    if response_dict is None or response_dict["status_code"] in TRANSIENT_STATUS:
        return
    status, headers, body = int(response_dict["status_code"]), response_dict["headers"], response_dict["body"]
    name, content = event_name.rpartition(".")[2], body if isinstance(body, bytes) else b""
    if status in REDIRECTS:
        lost = "x-amz-bucket-region" not in headers and b"<Region>" not in content and (name == "HeadBucket" or not aws)
        what = "a redirect" if lost else ""
    else:
        what = "" if name == "HeadBucket" else _strange(name, status, headers, content)
    if what:
        found = ENDPOINT.search(content)
        location = str(headers.get("location") or (found[1].decode("utf-8", "replace") if found else ""))
        raise ForeignError(status, what, _shown(content), location if status in REDIRECTS else "")


def not_http(error: BaseException | None) -> ForeignError | None:
    """Returns the error for an answer that is not HTTP, from the failure of a request; None for any other failure."""
    while error is not None and not isinstance(error, BadStatusLine):
        inner = getattr(error, "kwargs", {}).get("error") or next(iter(error.args[1:]), None)
        error = inner if isinstance(inner, BaseException) else None
    if error is None or isinstance(error, RemoteDisconnected):
        return None
    return ForeignError(0, "text that is not HTTP", _shown(str(error).encode()))


def is_marked(headers: Mapping[str, str]) -> bool:
    """Whether an answer has a header that only S3 servers send."""
    return any(name in headers for name in MARKS)


def _strange(operation: str, status: int, headers: Mapping[str, str], content: bytes) -> str:
    """Returns what an answer is if it is not S3's, else an empty text."""
    marked = is_marked(headers)
    kind, tag = str(headers.get("content-type", "")).partition(";")[0].strip().lower(), str(headers.get("etag", ""))
    found = ROOT.match(content)
    root = found[1].decode("ascii", "replace") if found else ""
    what = _kind(kind, root, content)
    if status >= 300:
        if operation == "HeadObject" or not content:
            silent = operation == "HeadObject" and kind not in ("text/html", "application/json")
            return "" if marked or silent or status == 304 else what
        return "" if root == "Error" else what
    if operation in ROOTS:
        return "" if root in (ROOTS[operation], "Error") else what
    if operation in ("GetObject", "HeadObject", "PutObject", "UploadPart"):
        if operation == "HeadObject" and "content-length" not in headers:
            return "an answer without Content-Length"
        known = marked or (MD5.fullmatch(tag) if kind == "text/html" else tag)
        return "" if known else what
    return "" if marked or not (content or kind == "text/html") or root == "Error" else what


def _kind(kind: str, root: str, content: bytes) -> str:
    if kind == "text/html" or root.lower() == "html" or content.lstrip()[:9].lower() == b"<!doctype":
        return "a web page"
    if kind.endswith("json") or content.lstrip()[:1] in (b"{", b"["):
        return "JSON"
    if root:
        return f"the XML <{root}>"
    return "text" if content.strip() else "an answer that is not S3's"


def _shown(content: bytes) -> str:
    text = content[:4000].decode("utf-8", "replace")
    title = TITLE.search(text)
    words = " ".join((title[1] if title else re.sub(r"<[^>]*>", " ", text)).split())
    return words if len(words) <= 80 else f"{words[:79]}…"


def remedy_for_foreign(foreign: ForeignError, *, endpoint: str) -> str:
    """Returns what to do about an answer that is not S3's."""
    here, there = urlsplit(endpoint), urlsplit(foreign.location)
    secure = here.scheme == "http" and (
        (there.scheme == "https" and there.hostname == here.hostname) or re.search(r"HTTPS (server|port)", foreign.text)
    )
    if secure:
        return f"it wants TLS: set AWS_ENDPOINT_URL_S3=https://{there.netloc or here.netloc}"
    if foreign.status in REDIRECTS:
        where = f"it redirects to {foreign.location[:200]}: " if foreign.location else ""
        return f"{where}set AWS_ENDPOINT_URL_S3 to the S3 API of the bucket's own server and AWS_REGION to its region"
    return API


def remedy_for_region(error: Mapping[str, Any], headers: Mapping[str, str], *, endpoint: str) -> str:
    """Returns what to do about a bucket in another region or at another address.

    Args:
        error: The fields of S3's error.
        headers: The answer's headers.
        endpoint: The server's address.
    """
    region = headers.get("x-amz-bucket-region") or error.get("Region")
    address = error.get("Endpoint") or headers.get("location")
    ways = [f"set AWS_REGION={region}" if region else "set AWS_REGION to the bucket's region"]
    if address:
        ways.append(f"AWS_ENDPOINT_URL_S3 to the bucket's server (the answer names {address})")
    elif ".amazonaws.com" in endpoint:
        ways.append("leave AWS_ENDPOINT_URL_S3 unset")
    return " and ".join(ways)


def clock_skew_s(error: Mapping[str, Any], headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Returns by how many seconds this machine's clock is ahead of the server's; None if the answer has no time.

    Args:
        error: The fields of S3's error.
        headers: The answer's headers.
        now: This machine's time.
    """
    for text, read in ((headers.get("date"), parsedate_to_datetime), (error.get("ServerTime"), datetime.fromisoformat)):
        try:
            there = read(str(text)) if text else None
        except ValueError:
            continue
        if there is not None:
            return (now - (there if there.tzinfo else there.replace(tzinfo=UTC))).total_seconds()
    return None


def is_skewed(code: str, status: int, skew_s: float | None) -> bool:
    """Whether a request was refused because of the clocks; an answer without a body does not say so itself."""
    return code in SKEW_CODES or (status == 403 and skew_s is not None and abs(skew_s) > MOST_SKEW_S)


def skew_text(skew_s: float | None) -> str:
    """Returns how the clocks differ, in words."""
    if skew_s is None or abs(skew_s) < 1:
        return "the clocks of this machine and of the server differ by more than it accepts"
    minutes, seconds = divmod(round(abs(skew_s)), 60)
    long = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"
    return f"this machine's clock is {long} {'ahead of' if skew_s > 0 else 'behind'} the server's"
