"""The `restricted` Pod Security standard, and a little more, as one function that names what breaks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
HOST = ("hostNetwork", "hostPID", "hostIPC", "hostUsers")


def breaches(pod: Mapping[str, Any]) -> list[str]:
    """Names what of a pod's spec is outside the standard, or can write to its image."""
    own = pod.get("securityContext", {})
    found = [key for key in HOST if pod.get(key)]
    found += [f"volume {one['name']}" for one in pod.get("volumes", ()) if not set(one) - {"name"} <= VOLUMES]
    found += ["sysctls"] if own.get("sysctls") else []
    containers = [
        *pod["containers"], *pod.get("initContainers", ()), *pod.get("ephemeralContainers", ()),
    ]  # fmt: skip
    for container in containers:
        said = container.get("securityContext", {})
        name = container["name"]
        capabilities = said.get("capabilities", {})

        def effective(key: str, said: Mapping[str, Any] = said) -> Any:
            return said.get(key, own.get(key))

        broken = {
            "privileged": bool(said.get("privileged")),
            "allowPrivilegeEscalation": said.get("allowPrivilegeEscalation") is not False,
            "capabilities": capabilities.get("drop") != ["ALL"] or bool(capabilities.get("add")),
            "runAsNonRoot": effective("runAsNonRoot") is not True,
            "runAsUser": effective("runAsUser") == 0,
            "seccompProfile": (effective("seccompProfile") or {}).get("type") != "RuntimeDefault",
            "hostPort": any("hostPort" in port for port in container.get("ports", ())),
            "procMount": said.get("procMount", "Default") != "Default",
            "readOnlyRootFilesystem": said.get("readOnlyRootFilesystem") is not True,
        }
        found += [f"{name}: {what}" for what, is_broken in broken.items() if is_broken]
    return found
