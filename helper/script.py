"""What happens around every script's ``main``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from helper.errors import UsageError


def run_script(main: Callable[[Sequence[str]], None]) -> None:
    """Call ``main`` with the command line; bad input becomes one line on stderr and exit code 2."""
    try:
        main(sys.argv[1:])
    except UsageError as error:
        print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; --resume continues from the last finished epoch", file=sys.stderr)
        sys.exit(130)
