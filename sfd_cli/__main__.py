"""`python -m sfd_cli`, and with it `torchrun -m sfd_cli`."""

from sfd_cli.cli import main

main()
