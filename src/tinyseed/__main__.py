"""`python -m tinyseed` is the command `tinyseed`."""

from tinyseed.cli import main

main()
