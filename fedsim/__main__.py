"""``python -m fedsim`` is the command line."""

from fedsim.cli.commands import main

main()
