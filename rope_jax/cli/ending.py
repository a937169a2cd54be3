"""How a command ends at what a user can correct; it imports nothing that takes time."""

import sys
import traceback
from typing import NoReturn


def stop(message: str, status: int = 2, debug: bool = False) -> NoReturn:
    """Ends the process with a line, after the traceback of what ended it if `debug`."""
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
