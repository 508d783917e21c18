"""`python -m consumer` is `conversation-consumer`."""

from consumer.commands.root import main

main()
