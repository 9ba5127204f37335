"""What a silo's folder holds: a policy with every key, a unit that systemd takes, and secrets in one place alone."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from lwfed.agent.enrol import Silo, policy_text, secret_of, silo_files, write_silo
from lwfed.agent.policy import Policy, load_policy
from lwfed.types.errors import LwfedError

SILO = Silo(
    client="client-009", store="s3://lwfed/fed", endpoint="https://store.example.org:9000", access_key="c9",
    secret_key="not-to-be-seen", authority="-----BEGIN CERTIFICATE-----\n",
)  # fmt: skip
POLICIES = [
    Policy(),
    Policy(
        data={"coco": "/data/coco", "har": "/data/a b: c"}, cache="/var/lib/x", shared="/s", device="cuda", workers=3,
        memory="8GiB", round_s=90.5, experiments=("a-*", "yes"), objectives=("contrastive",), min_cohort=3,
    ),
]  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policys_text_is_that_policy_with_all_keys_and_their_meaning(policy: Policy, tmp_path: Path) -> None:
    text = policy_text(policy)
    (tmp_path / "agent.yaml").write_text(text)
    assert load_policy(tmp_path / "agent.yaml") == policy
    plain = " ".join(line.removeprefix("# ") for line in text.splitlines())
    for name, field in Policy.fields().items():
        assert f"\n{name}: " in text and field.description, name
        assert " ".join((field.description or "").split()) in plain, name


def test_only_the_secret_holds_the_secret(tmp_path: Path) -> None:
    files = silo_files(SILO)
    assert [name for name, text in files.items() if SILO.secret_key in text] == ["secret/secretkey"]
    assert not [name for name, text in files.items() if "$" in text.replace("${EDITOR:-vi}", "")], "no value is missing"
    write_silo(tmp_path / "silo", files, rotate=False)
    modes = {name: stat.S_IMODE((tmp_path / "silo" / name).stat().st_mode) for name in files}
    private = {name for name, mode in modes.items() if mode == 0o600}
    assert private == {name for name in files if name == "agent.env" or name.startswith("secret/")}
    assert stat.S_IMODE((tmp_path / "silo/secret").stat().st_mode) == 0o700
    assert {
        path.relative_to(tmp_path / "silo").as_posix() for path in (tmp_path / "silo").rglob("*") if path.is_file()
    } == (set(files)), "nothing else is left"
    assert secret_of(tmp_path / "silo") == SILO.secret_key and secret_of(tmp_path) is None


def test_a_public_authority_needs_no_certificate() -> None:
    without = Silo(client="c", store="s3://b", endpoint="https://x", access_key="a", secret_key="s")
    assert set(silo_files(SILO)) - set(silo_files(without)) == {"secret/ca.crt"}


def test_what_was_edited_stays_and_only_secrets_are_rotated(tmp_path: Path) -> None:
    write_silo(tmp_path, silo_files(SILO), rotate=False)
    for name in ("agent.yaml", "agent.env", "README.md", "lwfed-agent.service", "secret/endpoint"):
        (tmp_path / name).write_text("mine\n")
    later = Silo(client=SILO.client, store=SILO.store, endpoint=SILO.endpoint, access_key="a", secret_key="other")
    kept = write_silo(tmp_path, silo_files(later), rotate=False)
    assert set(kept) == {
        "agent.yaml", "agent.env", "README.md", "lwfed-agent.service", "secret/accesskey", "secret/secretkey",
        "secret/endpoint",
    }  # fmt: skip
    assert secret_of(tmp_path) == SILO.secret_key
    kept = write_silo(tmp_path, silo_files(later), rotate=True)
    assert kept == ["README.md", "agent.yaml", "agent.env", "lwfed-agent.service"]
    assert secret_of(tmp_path) == "other" and (tmp_path / "agent.yaml").read_text() == "mine\n"
    assert (tmp_path / "secret/endpoint").read_text() == f"{SILO.endpoint}\n"
    assert stat.S_IMODE((tmp_path / "secret/secretkey").stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "silo").write_text("a file")
    with pytest.raises(LwfedError, match="silo cannot be written") as caught:
        write_silo(tmp_path / "silo", silo_files(SILO), rotate=False)
    assert "--rotate" in caught.value.remedy


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "lwfed-agent-client-009.service"
    text = silo_files(Silo(client="client-009", store="s3://b/50%off", endpoint="x", access_key="a", secret_key="s"))
    unit.write_text(text["lwfed-agent.service"].replace("/opt/lwfed/bin/lwfed", "/bin/true"))
    done = subprocess.run([verify, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if unit.name in line] == [], "systemd knows every key"


def test_a_shell_reads_the_environment(tmp_path: Path) -> None:
    write_silo(tmp_path, silo_files(SILO), rotate=False)
    command = "set -a; . ./agent.env; set +a; env"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "LWFED_S3_SECRET_DIR=/etc/lwfed/client-009/secret" in done.stdout.splitlines()
