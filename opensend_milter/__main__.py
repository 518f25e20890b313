"""`python -m opensend_milter`."""

from opensend_milter.cli import main

main()
