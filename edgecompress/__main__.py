"""`python -m edgecompress` is the `edgecompress` command."""

from edgecompress.cli import main

main()
