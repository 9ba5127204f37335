"""Options that the commands for Kubeflow Pipelines share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.client.kubeflow import Access

KfpRun = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="The pipeline run's id or its first 8 characters, lwfed's id of it, its name, or `latest`."
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="URL", help="Kubeflow Pipelines' address; else KF_PIPELINES_ENDPOINT."),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", metavar="NS", help="The namespace of the run and its Jobs: on Kubeflow, your profile."),
]
Token = Annotated[
    str | None, typer.Option("--token", metavar="TOKEN", help="A bearer token; others see it: better --token-file.")
]
TokenFile = Annotated[Path | None, typer.Option("--token-file", metavar="FILE", help="A file that holds the token.")]
TokenEnv = Annotated[
    str | None, typer.Option("--existing-token-env", metavar="NAME", help="The variable that holds the token.")
]
Cookies = Annotated[
    str | None, typer.Option("--cookies", metavar="TEXT", help="Cookies of a session: authservice_session=...")
]
Authority = Annotated[
    Path | None, typer.Option("--ssl-ca-cert", metavar="FILE", help="Certificates to trust the server by.")
]
Stages = Annotated[str | None, typer.Option("--stages", metavar="A-B", help="Train these stages alone: 3-6, 3- or 3.")]
StartFrom = Annotated[
    str | None, typer.Option("--from", metavar="RUN:STAGE", help="Take the stages before STAGE from that run.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Follow it to its end; the exit code is the run's own.")]
StartTimeout = Annotated[
    float,
    typer.Option(
        "--start-timeout", metavar="S", min=1, help="With --wait: give up after S seconds without a container at work."
    ),
]


def access_of(
    endpoint: str | None,
    namespace: str | None,
    token: str | None,
    token_file: Path | None,
    token_env: str | None,
    cookies: str | None,
    ssl_ca_cert: Path | None,
) -> Access:
    """Makes an access of options."""
    return Access(
        endpoint=endpoint,
        namespace=namespace,
        existing_token=token,
        token_file=token_file,
        token_env=token_env,
        cookies=cookies,
        ssl_ca_cert=ssl_ca_cert,
    )
