"""From what a sandbox said when it could not start to what the person in front of it can do."""

from pathlib import Path

_APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
_CLONE = Path("/proc/sys/kernel/unprivileged_userns_clone")
_MAXIMUM = Path("/proc/sys/user/max_user_namespaces")


def remedy(said: str) -> str:
    """A sentence to append to the error, or nothing when the words are not known."""
    lowered = said.lower()
    if "docker daemon" in lowered or "docker.sock" in lowered:
        return "\nStart the docker daemon (systemctl start docker) or choose another backend."
    if not any(word in lowered for word in ("namespace", "uid map", "unshare", "operation not permitted", "mount ")):
        return ""
    if _value(_CLONE) == "0":
        return "\nUser namespaces are switched off. As root: sysctl -w kernel.unprivileged_userns_clone=1"
    if _value(_MAXIMUM) == "0":
        return "\nUser namespaces are limited to none. As root: sysctl -w user.max_user_namespaces=15000"
    if _value(_APPARMOR) == "1":
        return (
            "\nAppArmor keeps user namespaces from unlisted programs. As root, list bubblewrap alone:\n"
            "  printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\n"
            "profile bwrap /usr/bin/bwrap flags=(unconfined) {\\n  userns,\\n}\\n' > /etc/apparmor.d/bwrap\n"
            "  apparmor_parser -r /etc/apparmor.d/bwrap"
        )
    return (
        "\nThis often means a container around it that forbids namespaces. Start that container with "
        "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined, "
        "or run outside of it."
    )


def _value(path: Path) -> str:
    return path.read_text(encoding="ascii").strip() if path.exists() else ""
