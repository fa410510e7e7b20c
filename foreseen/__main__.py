"""`python -m foreseen` is the command `foreseen`."""

from foreseen.cli import main

main()
