"""`python -m imageopsd` is `imageopsd`."""

from imageopsd.cli.main import main

main()
