"""`python -m consumer` is `conversation-consumer`."""

from consumer.cli import main

main()
