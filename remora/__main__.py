"""`python -m remora`: the same as the command `remora`."""

from remora.cli import main

main()
