"""The same as null_milter.c in pymilter, at its lowest level: what Python costs before it does anything."""

from __future__ import annotations

import os
import sys

import milter

from opensend_milter.servers.milter import WANTED


def _negotiate(_: object, options: list[int]) -> int:
    if options[1] & WANTED != WANTED:
        sys.stderr.write("null_milter: Postfix does not offer what is to be compared\n")
        return int(milter.REJECT)
    options[:] = [0, WANTED, 0, 0]
    return int(milter.CONTINUE)


def _collect(*_: object) -> int:
    return int(milter.NOREPLY)


def _discard(_: object) -> int:
    return int(milter.DISCARD)


def main() -> None:
    """Serve the socket that is named."""
    os.umask(0)
    milter.set_envfrom_callback(_collect)
    milter.set_envrcpt_callback(_collect)
    milter.set_header_callback(_collect)
    milter.set_body_callback(_collect)
    milter.set_eom_callback(_discard)
    milter.register("null", negotiate=_negotiate)
    milter.setbacklog(512)
    milter.setconn(f"unix:{sys.argv[1]}")
    milter.main()


if __name__ == "__main__":
    main()
