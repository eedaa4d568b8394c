"""`python -m mkc` is the command `mkc`."""

from mkc.cli import main

main()
