"""``python -m zopeft`` is ``zopeft``."""

import sys

# The folder cli/, which is in the package under this name once it is installed.
from zopeft.cli.main import main  # type: ignore[import-not-found]

if __name__ == "__main__":
    sys.exit(main())
