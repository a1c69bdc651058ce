"""The address of a board, as `--device` names it."""

from dataclasses import dataclass

from toolchain.core.errors import ToolchainError


@dataclass(frozen=True)
class Address:
    """Address of a board: `ssh:[user@]host[:port][#python]`."""

    host: str  # with the user
    port: str = ""
    python: str = "python3"


def parse_address(device: str) -> Address:
    """Return the address that a `--device` names.

    Raises:
        ToolchainError: it is not a board's address.
    """
    protocol, _, rest = device.partition(":")
    destination, _, python = rest.partition("#")
    host, _, port = destination.partition(":")
    bare_host = host.rpartition("@")[2]
    # a host that starts with "-" would be an option of ssh
    invalid_host = not bare_host or host.startswith("-") or bare_host.startswith("-")
    if protocol != "ssh" or invalid_host or (port and not port.isdigit()):
        raise ToolchainError(
            f"--device {device!r} is not a board's address. Give ssh:user@host, with a port and the path of Python where they "
            "differ from the defaults: ssh:pi@board:2222#/opt/venv/bin/python"
        )
    return Address(host, port, python or "python3")
