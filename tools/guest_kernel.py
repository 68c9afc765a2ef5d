"""For set-up: `find` the kernel for guests, ask if it is `whole` (lacks nothing), `add` one from packages."""

from __future__ import annotations

import sys
from pathlib import Path

from ramet.errors import RametError
from ramet.images.kernel import Kernel, add_kernel_package, find_kernel, has_all_modules
from ramet.images.kernel_gaps import gaps


def main(words: list[str]) -> int:
    """Prints the kernel's version and path. Returns the exit code of ramet's own error, 2 for other words."""
    kernel: Kernel
    try:
        match words:
            case ["find"]:
                kernel = find_kernel()
                if not has_all_modules(kernel):
                    print(f"{kernel.version} lacks modules that guests need now", file=sys.stderr)
                    return 5
            case ["whole"]:
                kernel = find_kernel()
                if missing := gaps(kernel):
                    print(f"{kernel.version} lacks {', '.join(missing)}")
                    return 5
            case ["add", *packages] if packages:
                kernel = add_kernel_package(*map(Path, packages))
            case _:
                print("usage: guest_kernel.py find | whole | add PACKAGE.deb…", file=sys.stderr)
                return 2
    except RametError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(kernel.version, kernel.vmlinuz)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
