"""``python -m fedsim`` is the command line."""

from fedsim.cli import main

main()
