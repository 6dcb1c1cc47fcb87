"""Addresses that a command listens at."""

from __future__ import annotations

import errno
import ipaddress
import socket

from decoding.errors import OptionError, one_line

__all__ = ["check_address", "is_loopback"]


def check_address(host: str, port: int | None) -> None:
    """Raise OptionError where this machine cannot listen at an address, in words of the options.

    Args:
        host: an address or a name.
        port: None or 0 for any.
    """
    try:
        found = socket.getaddrinfo(host or None, port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise OptionError(
            f"--host {host}: is no address, and no name that is known here ({one_line(error)}); 127.0.0.1 is this "
            "machine alone, 0.0.0.0 every address that it has"
        ) from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
        except OSError as error:
            raise OptionError(_problem(host, port, error)) from error


def is_loopback(host: str) -> bool:
    """True of an address, or of a name, that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _problem(host: str, port: int | None, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use; give another with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"--host {host}: this machine has no such address; 127.0.0.1 is this machine alone, 0.0.0.0 every address "
            "that it has"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port}: this user may not listen there; give one from 1024 on with --port"
    return f"cannot listen at {host}{'' if port is None else f':{port}'}: {one_line(error)}"
