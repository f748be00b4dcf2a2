"""What every script shares: options, loop, checkpoints, logs. No method is named here."""

import sys

if sys.platform == "win32":  # no fcntl, no signals that a scheduler sends; every script passes here
    print(f"{sys.argv[0]}: error: native Windows is not supported; start it inside WSL", file=sys.stderr)
    sys.exit(2)
