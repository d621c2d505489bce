"""`python -m guestagent` is the `guestagent` command."""

from guestagent.cli import main

raise SystemExit(main())
